package consumer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// JournalRemote is a receiver of journals: systemd-journal-remote, which needs no systemd to run.
type JournalRemote struct {
	Address                 string // host:port
	Output                  string // directory of what is received
	Certificate, Key, Trust string // Trust is left out where it is empty: a systemd without GnuTLS refuses the option
	Plain                   bool   // HTTP without TLS, behind a tunnel
}

// Program is the receiver in the foreground.
func (j JournalRemote) Program() Program {
	args := []string{"--output=" + j.Output}
	if j.Plain {
		args = append(args, "--listen-http="+j.Address)
	} else {
		args = append(args, "--listen-https="+j.Address, "--cert="+j.Certificate, "--key="+j.Key)
		if j.Trust != "" {
			args = append(args, "--trust="+j.Trust)
		}
	}
	return Program{Path: "/lib/systemd/systemd-journal-remote", Args: args, Ready: Listening(j.Address)}
}

// JournalUpload is a sender of a journal.
type JournalUpload struct {
	URL                     string
	Certificate, Key, Trust string
	Entries                 string // file in the journal's export format
}

// Command is the sender's words: it sends the entries and ends.
func (j JournalUpload) Command() []string {
	return []string{"/lib/systemd/systemd-journal-upload", "--url=" + j.URL, "--cert=" + j.Certificate, "--key=" + j.Key, "--trust=" + j.Trust, j.Entries}
}

// WriteJournalEntry writes an entry of a host's journal in its export format.
func WriteJournalEntry(path, host, message string, at time.Time) error {
	const id = "0123456789abcdef0123456789abcdef"
	text := fmt.Sprintf("__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=1000\n_BOOT_ID=%s\n_MACHINE_ID=%s\n_HOSTNAME=%s\nPRIORITY=6\nMESSAGE=%s\n\n",
		at.UnixMicro(), id, id, host, message)
	return os.WriteFile(path, []byte(text), 0o644)
}

// JournalReceiver is a receiver of our own on a loopback port.
type JournalReceiver struct {
	*Process
	Remote JournalRemote
}

// StartJournalRemote starts a receiver in a new directory below dir, on a free port.
func StartJournalRemote(ctx context.Context, dir string, j JournalRemote) (*JournalReceiver, error) {
	home, err := os.MkdirTemp(dir, "journal")
	if err != nil {
		return nil, err
	}
	if j.Address, err = FreeAddress(); err != nil {
		return nil, err
	}
	j.Output = filepath.Join(home, "received")
	if err := os.Mkdir(j.Output, 0o700); err != nil {
		return nil, err
	}
	run := &JournalReceiver{Remote: j}
	run.Process, err = Start(ctx, j.Program())
	return run, err
}

// Reload is a restart in its place: a receiver has no other, and SIGHUP ends it.
func (r *JournalReceiver) Reload(ctx context.Context) error {
	if err := r.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-r.Done()
	var err error
	r.Process, err = Start(ctx, r.Remote.Program())
	return err
}
