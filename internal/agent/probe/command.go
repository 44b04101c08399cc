package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"chancery/internal/fault"
)

// Command is a program to run on the host. No shell is between: each argument arrives as it is.
type Command struct {
	Args        []string
	User, Group string        // who runs it; empty: whoever we are
	Timeout     time.Duration // 30 s where it is 0
}

// searchPath is where commands are looked for, whatever the caller's environment says.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// outputLimit bounds what is kept of a command's output; the rest is read and thrown away, so that the command does not
// stop on a full pipe.
const outputLimit = 64 << 10

// ErrNoCommand says that the program to run is not on this host.
var ErrNoCommand = errors.New("no such command")

// Run runs a command with an environment of PATH and LC_ALL=C only, and returns what it printed on both streams, in the
// order in which it came, as far as it is kept. When the time is over, it and all of its process group are killed. An
// error carries the last of what was printed.
func (s System) Run(ctx context.Context, c Command) ([]byte, error) {
	if len(c.Args) == 0 {
		return nil, fault.New(fault.Invalid, "a command has no words: it needs a program at least")
	}
	program, err := lookPath(c.Args[0])
	if err != nil {
		return nil, err
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, c.Args[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + searchPath, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if cmd.SysProcAttr.Credential, err = s.actAs(c.User, c.Group); err != nil {
		return nil, err
	}
	var out bounded
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 500 * time.Millisecond // a daemon that it started may hold its output open
	err = cmd.Run()
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return out.text.Bytes(), nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("%w: it was killed after %s", context.DeadlineExceeded, timeout)
	}
	if said := lastLines(out.text.String()); said != "" {
		return out.text.Bytes(), fmt.Errorf("run %s: %w; it printed: %s", c.Args[0], err, said)
	}
	return out.text.Bytes(), fmt.Errorf("run %s: %w", c.Args[0], err)
}

// actAs returns the credentials of a child that acts for user and group; nil where they are our own. Below a Root without
// the right to act as others, our own user stands for all.
func (s System) actAs(user, group string) (*syscall.Credential, error) {
	if user == "" && group == "" {
		return nil, nil
	}
	if !s.AsRoot && s.Root != "" {
		return nil, nil
	}
	u, err := s.credential(user, group)
	if err != nil {
		return nil, err
	}
	if u.UID == os.Geteuid() && (group == "" || u.GID == os.Getegid()) {
		return nil, nil
	}
	if !s.AsRoot {
		return nil, fault.New(fault.Denied, "this process is no root and cannot run a command as %s", u.Name)
	}
	c := &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}
	for _, g := range u.Groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c, nil
}

// lookPath finds a program in searchPath, or takes its absolute path.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		if !strings.HasPrefix(name, "/") {
			return "", fault.New(fault.Invalid, "the command %q is neither a name nor an absolute path", name)
		}
		if runnable(name) {
			return name, nil
		}
		return "", fmt.Errorf("%s: %w", name, ErrNoCommand)
	}
	for dir := range strings.SplitSeq(searchPath, ":") {
		if path := dir + "/" + name; runnable(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s", name, ErrNoCommand, searchPath)
}

func runnable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}

// bounded keeps the first outputLimit octets.
type bounded struct{ text bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := outputLimit - b.text.Len(); room > 0 {
		b.text.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// lastLines is the end of what a program said, on one line and without control characters.
func lastLines(text string) string {
	const most = 600
	text = strings.TrimSpace(text)
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	clean := func(r rune) rune {
		switch {
		case r == '\n':
			return '|'
		case r < ' ' || r == 0x7f:
			return -1
		}
		return r
	}
	return strings.ToValidUTF8(strings.Map(clean, text), "?")
}

// readAtMost reads all of r, and refuses more than limit octets.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > limit {
		return nil, fmt.Errorf("it has more than %d octets", limit)
	}
	return text, nil
}
