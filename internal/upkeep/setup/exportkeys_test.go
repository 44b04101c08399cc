package setup_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// envExport tells this binary, run again, what to do: "full", or the number of the system call at which it dies.
const envExport = "CHANCERY_SETUP_TEST_EXPORT"

var exportPassword = []byte("long enough a word")

func export(t *testing.T, dir datadir.Dir, out string) error {
	_, err := setup.ExportKeys(t.Context(), setup.KeysOptions{Dir: dir, Subsystem: keys.SubsystemCA, Out: out, Password: bytes.Clone(exportPassword)})
	return err
}

// TestExportedFileIsWholeOrNotThere has a full disk, and death at each step, come in between while keys are written to a PKCS#12 file: there
// is no file by that name, or the whole one; what was there stays, and the next try succeeds. The database is PostgreSQL, so that no
// system call but those of the file is concerned.
func TestExportedFileIsWholeOrNotThere(t *testing.T) {
	if what := os.Getenv(envExport); what != "" {
		exportAgain(t, what, datadir.Dir(os.Getenv(envExport+"_DIR")), os.Getenv(envExport+"_OUT"))
		return
	}
	t.Parallel()
	dir := newDir(t)
	if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir,
		DatabaseFile: databaseFile(t, pkitest.URL(t, db.Postgres)), Online: true}); err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		name, what string
		whole      bool
	}{
		{"a full disk", "full", false},
		{"killed before it is on disk", strconv.Itoa(unix.SYS_FSYNC), false},
		{"killed before it has its name", strconv.Itoa(unix.SYS_LINKAT), false},
		{"killed when it has its name", strconv.Itoa(unix.SYS_UNLINKAT), true},
	} {
		t.Run(one.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			if err := errors.Join(os.Mkdir(out, 0o700), os.WriteFile(filepath.Join(out, "old.p12"), []byte("old"), 0o600)); err != nil {
				t.Fatal(err)
			}
			said, err := exportElsewhere(t, one.what, dir, out)
			if one.what == "full" {
				if err != nil || !strings.Contains(said, "refused and gone") {
					t.Fatalf("%v: %s", err, said)
				}
				return
			}
			died, ok := errors.AsType[*exec.ExitError](err)
			if !ok || died.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSYS {
				t.Fatalf("it was to die, and %v: %s", err, said)
			}
			if text := readFile(t, filepath.Join(out, "old.p12")); string(text) != "old" {
				t.Error("another file was changed")
			}
			path := filepath.Join(out, "new.p12")
			if _, err := os.Stat(path); one.whole != (err == nil) {
				t.Fatalf("there is a file: %v", err)
			}
			if one.whole {
				opens(t, path)
				if err := export(t, dir, path); !fault.Is(err, fault.Conflict) {
					t.Errorf("over a file that is there: %v", err)
				}
				return
			}
			if err := export(t, dir, path); err != nil {
				t.Fatal(err)
			}
			opens(t, path)
		})
	}
}

// opens has OpenSSL read a file whole, whose mode is for its owner.
func opens(t *testing.T, path string) {
	t.Helper()
	cmd := exec.Command("openssl", "pkcs12", "-in", path, "-passin", "stdin", "-nodes")
	cmd.Stdin = bytes.NewReader(exportPassword)
	text, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(text), "caSigningCert default") || !strings.Contains(string(text), "PRIVATE KEY") {
		t.Errorf("openssl: %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// exportElsewhere exports in a process of its own, with mounts of its own.
func exportElsewhere(t *testing.T, what string, dir datadir.Dir, out string) (said string, err error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestExportedFileIsWholeOrNotThere$")
	cmd.Env = append(os.Environ(), envExport+"="+what, envExport+"_DIR="+string(dir), envExport+"_OUT="+out)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// exportAgain is what the other process does.
func exportAgain(t *testing.T, what string, dir datadir.Dir, out string) {
	if what == "full" {
		exportToFullDisk(t, dir, out)
		return
	}
	number, err := strconv.ParseUint(what, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	dieAt(t, uint32(number))
	t.Fatalf("it lives on: %v", export(t, dir, filepath.Join(out, "new.p12")))
}

// exportToFullDisk leaves room for the first page of the file.
func exportToFullDisk(t *testing.T, dir datadir.Dir, out string) {
	if err := syscall.Mount("none", out, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	ballast, path, page := filepath.Join(out, "ballast"), filepath.Join(out, "new.p12"), os.Getpagesize()
	if err := os.WriteFile(ballast, make([]byte, 64<<10-page), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := export(t, dir, path); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), path) {
		t.Fatalf("on a full disk: %v", err)
	}
	if left, err := os.ReadDir(out); err != nil || len(left) != 1 {
		t.Fatalf("it left %v, %v", left, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := export(t, dir, path); err != nil {
		t.Fatal(err)
	}
	opens(t, path)
	fmt.Println("refused and gone")
}

// dieAt has the kernel kill this process, all of it and at once, when it makes a system call.
func dieAt(t *testing.T, number uint32) {
	t.Helper()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: number},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	failed, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if err != 0 || failed != 0 {
		t.Fatalf("seccomp: %v, thread %d", err, failed)
	}
	runtime.KeepAlive(filter)
}
