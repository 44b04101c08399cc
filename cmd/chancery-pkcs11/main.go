// Command chancery-pkcs11 signs with keys that lie in a PKCS #11 token, for one chancery node that started it.
//
//	chancery-pkcs11 SOCKET LIBRARY
//
// A PKCS #11 library is code of a token's vendor, loaded into the process that calls it. So it gets a process of its own:
// the node stays one static binary without cgo, and a library that crashes or hangs costs a restart of this process and
// never the node. It listens on SOCKET (mode 0600), talks to nobody but the process that started it (peer credentials: its
// user and its process id), and ends when its standard input does. It writes "ready" to standard output when it listens.
//
// A PIN reaches it over that socket and is in no argument, no environment and no log. The process cannot be traced and
// leaves no core. It recovers from nothing by itself: where a token or session went away it says so, and the node replaces
// the process, which is the one way to begin anew that all libraries have in common.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"chancery/internal/store/token/wire"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "chancery-pkcs11:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: chancery-pkcs11 SOCKET LIBRARY; a chancery node starts it, as its node.yaml says under pkcs11")
	}
	if err := harden(); err != nil {
		return err
	}
	l, err := listen(args[0])
	if err != nil {
		return err
	}
	go func() { // the node has ended
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = os.Remove(args[0])
		os.Exit(0)
	}()
	fmt.Println("ready")
	m := &module{path: args[1]}
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if err := admit(conn); err != nil {
				fmt.Fprintln(os.Stderr, "chancery-pkcs11: refused a caller:", err)
				return
			}
			if err := serve(conn, m); err != nil {
				fmt.Fprintln(os.Stderr, "chancery-pkcs11: serve the node:", err)
			}
		}()
	}
}

// harden keeps the memory of this process, which has the PIN and the sessions in it, from other processes of the same user.
func harden() error {
	const setDumpable = 4 // PR_SET_DUMPABLE
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, setDumpable, 0, 0); errno != 0 {
		return fmt.Errorf("forbid tracing: %w", errno)
	}
	return syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
}

// listen makes the socket with its mode: the umask is narrowed first, so that there is no instant at which others may call.
func listen(path string) (*net.UnixListener, error) {
	syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(0o077)
	return l, err
}

// admit refuses every caller but the process that started this one.
func admit(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) {
		peer, asked = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if asked != nil {
		return asked
	}
	if int(peer.Uid) != os.Geteuid() || int(peer.Pid) != os.Getppid() {
		return fmt.Errorf("process %d of user %d is not the node, process %d of user %d", peer.Pid, peer.Uid, os.Getppid(), os.Geteuid())
	}
	return nil
}

// serve answers the requests of one connection, one after the other, with sessions of its own.
func serve(conn *net.UnixConn, m *module) error {
	own := &sessions{module: m, bySlot: map[uint]session{}}
	defer own.close()
	in := bufio.NewReader(conn)
	for {
		verb, fields, err := wire.Read(in, wire.MaxMessage)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer, err := own.answer(verb, fields)
		if err == nil {
			err = wire.Write(conn, byte(wire.OK), answer)
		} else {
			code := wire.Failed
			if r, ok := errors.AsType[*refusal](err); ok {
				code = r.code
			}
			err = wire.Write(conn, byte(code), []byte(err.Error()))
		}
		if err != nil {
			return err
		}
	}
}
