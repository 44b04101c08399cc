package consumer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// QEMUMachine is a virtual machine without a guest, emulated and not virtualized: what of QEMU speaks TLS works without KVM.
type QEMUMachine struct {
	Name    string
	Socket  string // of QMP
	Display string // host:port of its VNC display; none where it is empty
	TLS     string // directory of the display's certificates; a display without TLS where it is empty
	Verify  bool   // the display wants clients' certificates
	Migrate string // directory of certificates for migration; none where it is empty
	Role    string // server or client, with Migrate
	Memory  bool   // it is a whole machine that can be migrated, and not merely a process with a display
	Waits   bool   // it waits for a machine to arrive
}

// Program is the machine as a process in the foreground.
func (m QEMUMachine) Program() (Program, error) {
	args := []string{"-nodefaults", "-display", "none", "-name", m.Name, "-qmp", "unix:" + m.Socket + ",server=on,wait=off"}
	if m.Memory {
		args = append(args, "-M", "q35,accel=tcg", "-m", "32", "-S")
	} else {
		args = append(args, "-machine", "none")
	}
	if m.Waits {
		args = append(args, "-incoming", "defer")
	}
	if m.Migrate != "" {
		args = append(args, "-object", "tls-creds-x509,id=migrate0,endpoint="+m.Role+",verify-peer=on,dir="+m.Migrate)
	}
	ready := Answering(m.Socket)
	if m.Display != "" {
		host, service, _ := strings.Cut(m.Display, ":")
		port, err := strconv.Atoi(service)
		if err != nil || port < 5900 {
			return Program{}, fmt.Errorf("start %s: a display is at port 5900 or above, and not at %s", m.Name, m.Display)
		}
		display := fmt.Sprintf("%s:%d", host, port-5900)
		if m.TLS != "" {
			verify := map[bool]string{true: "on", false: "off"}[m.Verify]
			args = append(args, "-object", "tls-creds-x509,id=vnc0,endpoint=server,verify-peer="+verify+",dir="+m.TLS)
			display += ",tls-creds=vnc0"
		}
		args = append(args, "-vnc", display)
	} else {
		args = append(args, "-vnc", "none")
	}
	return Program{Path: "qemu-system-x86_64", Args: args, Ready: ready}, nil
}

// Answering returns a Ready that passes once a QEMU answers at its QMP socket.
func Answering(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := QMP(ctx, socket, "query-status", nil)
		return err
	}
}

// QMP gives a QEMU one command by the QEMU Machine Protocol and returns its answer.
func QMP(ctx context.Context, socket, command string, arguments any) (json.RawMessage, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	in := bufio.NewScanner(conn)
	in.Buffer(nil, 1<<20)
	if !in.Scan() {
		return nil, errors.Join(errors.New("QEMU does not greet"), in.Err())
	}
	if _, err := qmpCommand(conn, in, "qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return qmpCommand(conn, in, command, arguments)
}

func qmpCommand(conn net.Conn, in *bufio.Scanner, command string, arguments any) (json.RawMessage, error) {
	question := map[string]any{"execute": command}
	if arguments != nil {
		question["arguments"] = arguments
	}
	if err := json.NewEncoder(conn).Encode(question); err != nil {
		return nil, err
	}
	for in.Scan() {
		var said struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(in.Bytes(), &said); err != nil {
			return nil, err
		}
		if said.Error != nil {
			return nil, fmt.Errorf("%s: %s", command, said.Error.Desc)
		}
		if said.Return != nil {
			return said.Return, nil
		}
	}
	return nil, fmt.Errorf("%s: no answer: %w", command, in.Err())
}

// NBDExport is a disk that qemu-nbd serves to clients with certificates.
type NBDExport struct {
	Address string // host:port
	TLS     string // directory of certificates
	Disk    string // file; a disk without content where it is empty
}

// Program is qemu-nbd in the foreground.
func (e NBDExport) Program() Program {
	host, port, _ := strings.Cut(e.Address, ":")
	args := []string{"-t", "-e", "16", "-b", host, "-p", port, "-x", "disk", "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir=" + e.TLS,
		"--tls-creds", "tls0"}
	if e.Disk == "" {
		args = append(args, "--image-opts", "driver=null-co,size=1048576")
	} else {
		args = append(args, "-f", "raw", e.Disk)
	}
	return Program{Path: "qemu-nbd", Args: args, Ready: Listening(e.Address)}
}

// NBDClient is what has qemu-img look at such a disk as a client that expects a name: the words of its command.
func NBDClient(address, name, dir string) []string {
	host, port, _ := strings.Cut(address, ":")
	return []string{"qemu-img", "info", "--object", "tls-creds-x509,id=tls0,endpoint=client,dir=" + dir,
		"--image-opts", "driver=nbd,host=" + host + ",port=" + port + ",export=disk,tls-creds=tls0,tls-hostname=" + name}
}

// QEMU is a machine of our own with a VNC display on a loopback port.
type QEMU struct {
	*Process
	Machine QEMUMachine
}

// StartQEMU starts a machine in a new directory below dir, whose path must be short enough for a socket.
func StartQEMU(ctx context.Context, dir string, m QEMUMachine) (*QEMU, error) {
	home, err := os.MkdirTemp(dir, "qemu")
	if err != nil {
		return nil, err
	}
	if m.Display, err = FreeDisplay(); err != nil {
		return nil, err
	}
	m.Socket = filepath.Join(home, "qmp")
	p, err := m.Program()
	if err != nil {
		return nil, err
	}
	run := &QEMU{Machine: m}
	run.Process, err = Start(ctx, p)
	return run, err
}

// Reload has the machine load the certificates of its display again.
func (q *QEMU) Reload(ctx context.Context) error {
	_, err := QMP(ctx, q.Machine.Socket, "display-reload", map[string]any{"type": "vnc", "tls-certs": true})
	return err
}

// FreeDisplay returns a loopback address for a VNC display, whose ports begin at 5900.
func FreeDisplay() (string, error) {
	for range 100 {
		address, err := FreeAddress()
		if err != nil {
			return "", err
		}
		_, port, _ := strings.Cut(address, ":")
		if n, err := strconv.Atoi(port); err == nil && n >= 5900 {
			return address, nil
		}
	}
	return "", errors.New("find a free display: every free port is below 5900")
}

// Accepting returns a Ready that passes once something accepts connections at a socket of the file system.
func Accepting(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}
