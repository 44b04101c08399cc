package loop

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Bounds of a conversation with a QEMU, which may be one that its guest has taken over.
const (
	qmpTimeout  = 5 * time.Second
	qmpLine     = 1 << 20
	qmpMessages = 1000 // events may come between an answer and its question
	qmpSockets  = 4096
	qmpObjects  = 256
)

// qmpTypeTLS is how QEMU names an object with certificates.
const qmpTypeTLS = "child<tls-creds-x509>"

// monitor is a connection to a QEMU by the QEMU Machine Protocol. A socket serves one client at a time.
type monitor struct {
	conn    net.Conn
	in      *bufio.Scanner
	version [3]int
}

// qmpError is what QEMU answers where it did not do it.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return printed(e.Desc) }

// openQMP connects, once more where there is no answer: a QEMU that is still busy with the end of an earlier connection may lose
// the first words of the next.
func openQMP(ctx context.Context, socket string) (*monitor, error) {
	m, err := dialQMP(ctx, socket)
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		m, err = dialQMP(ctx, socket)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.EAGAIN) { // the second where others wait already
		err = fmt.Errorf("it does not answer; a socket of QMP serves one client at a time, and another may hold it: %w", err)
	}
	return m, err
}

// dialQMP connects, and says nothing to what does not greet as QEMU does.
func dialQMP(ctx context.Context, socket string) (*monitor, error) {
	conn, err := (&net.Dialer{Timeout: qmpTimeout}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(qmpTimeout)
	if limit, ok := ctx.Deadline(); ok && limit.Before(deadline) {
		deadline = limit
	}
	m := &monitor{conn: conn, in: bufio.NewScanner(conn)}
	m.in.Buffer(nil, qmpLine)
	if err = conn.SetDeadline(deadline); err == nil {
		err = m.greet()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) greet() error {
	var greeting struct {
		QMP *struct {
			Version struct {
				QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
			} `json:"version"`
		} `json:"QMP"`
	}
	if !m.in.Scan() {
		return errors.Join(errors.New("it does not greet as QEMU does"), m.in.Err())
	}
	if err := json.Unmarshal(m.in.Bytes(), &greeting); err != nil || greeting.QMP == nil {
		return errors.New("it does not greet as QEMU does")
	}
	v := greeting.QMP.Version.QEMU
	m.version = [3]int{v.Major, v.Minor, v.Micro}
	return m.ask(nil, "qmp_capabilities", nil)
}

// ask sends a command and waits for its answer.
func (m *monitor) ask(answer any, command string, arguments map[string]any) error {
	question := map[string]any{"execute": command, "id": command}
	if arguments != nil {
		question["arguments"] = arguments
	}
	text, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(text, '\n')); err != nil {
		return err
	}
	for range qmpMessages {
		if !m.in.Scan() {
			if err := m.in.Err(); err != nil {
				return fmt.Errorf("%s: %w", command, err)
			}
			return fmt.Errorf("%s: %w", command, io.ErrUnexpectedEOF)
		}
		var said struct {
			Return json.RawMessage `json:"return"`
			Error  *qmpError       `json:"error"`
			ID     string          `json:"id"`
		}
		if err := json.Unmarshal(m.in.Bytes(), &said); err != nil {
			return fmt.Errorf("%s: the answer is no JSON", command)
		}
		switch {
		case said.Error != nil:
			return said.Error
		case said.Return == nil || said.ID != command: // an event
			continue
		case answer == nil:
			return nil
		}
		return json.Unmarshal(said.Return, answer)
	}
	return fmt.Errorf("%s: no answer among %d messages", command, qmpMessages)
}

func (m *monitor) close() { m.conn.Close() }

// machinesOfQMP are the machines whose sockets are in a directory and whose displays use the files in another. Sockets of
// machines that ended are passed over.
func machinesOfQMP(ctx context.Context, sockets, dir string) ([]machine, error) {
	entries, err := os.ReadDir(sockets)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // there is none while no machine was ever started
	}
	if err != nil {
		return nil, err
	}
	if len(entries) > qmpSockets {
		return nil, fmt.Errorf("%s has %d entries, and at most %d are looked at", sockets, len(entries), qmpSockets)
	}
	var mu sync.Mutex
	var all []machine
	var wrong []string
	eachMachine(entries, func(e fs.DirEntry) {
		if e.Type() != fs.ModeSocket { // a link could lead to somebody else's
			return
		}
		socket := filepath.Join(sockets, e.Name())
		m, err := machineOf(ctx, socket, dir)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		case err != nil:
			wrong = append(wrong, fmt.Sprintf("the machine of %s could not be asked: %s", printed(socket), err))
		case m != nil:
			all = append(all, *m)
		}
	})
	if len(wrong) == 0 {
		return all, nil
	}
	slices.Sort(wrong)
	return all, errors.New(strings.Join(wrong, "\n"))
}

// machineOf asks a QEMU who it is and where its display is; nil where it has none, or one with other files.
func machineOf(ctx context.Context, socket, dir string) (*machine, error) {
	qmp, err := openQMP(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer qmp.close()
	var named struct{ Name string }
	if err := qmp.ask(&named, "query-name", nil); err != nil {
		return nil, err
	}
	if named.Name == "" {
		named.Name = strings.TrimSuffix(filepath.Base(socket), filepath.Ext(socket))
	}
	var displays []struct {
		Server []struct {
			Host, Service string
			WebSocket     bool `json:"websocket"`
		}
	}
	if err := qmp.ask(&displays, "query-vnc-servers", nil); err != nil {
		return nil, err
	}
	ours, err := qmp.uses(dir)
	if err != nil || !ours {
		return nil, err
	}
	for _, d := range displays {
		for _, s := range d.Server {
			if _, err := strconv.ParseUint(s.Service, 10, 16); err != nil || s.WebSocket {
				continue // a socket of the file system, which no network reaches
			}
			return &machine{name: printed(named.Name), display: net.JoinHostPort(literal(s.Host), s.Service),
				reload: func(ctx context.Context) error { return reloadQMP(ctx, socket) }}, nil
		}
	}
	return nil, nil
}

// literal is a listening host as an address.
func literal(host string) string {
	switch host {
	case "", "*", "localhost":
		return "127.0.0.1"
	}
	return host
}

// uses reports whether the QEMU has certificates of the directory.
func (m *monitor) uses(dir string) (bool, error) {
	var objects []struct{ Name, Type string }
	err := m.ask(&objects, "qom-list", map[string]any{"path": "/objects"})
	if _, none := errors.AsType[*qmpError](err); none {
		return false, nil // it has no objects at all
	}
	if err != nil || len(objects) > qmpObjects {
		return false, err
	}
	for _, o := range objects {
		if o.Type != qmpTypeTLS {
			continue
		}
		var at string
		if err := m.ask(&at, "qom-get", map[string]any{"path": "/objects/" + o.Name, "property": "dir"}); err != nil {
			return false, err
		}
		if filepath.Clean(at) == filepath.Clean(dir) {
			return true, nil
		}
	}
	return false, nil
}

// reloadQMP tells a QEMU to load the certificates of its display again.
func reloadQMP(ctx context.Context, socket string) error {
	qmp, err := openQMP(ctx, socket)
	if err != nil {
		return err
	}
	defer qmp.close()
	err = qmp.ask(nil, "display-reload", map[string]any{"type": "vnc", "tls-certs": true})
	return reloadError(err, fmt.Sprintf("QEMU %d.%d.%d", qmp.version[0], qmp.version[1], qmp.version[2]))
}

// reloadError says what became of display-reload, which came with QEMU 6.0.
func reloadError(err error, version string) error {
	said, is := errors.AsType[*qmpError](err)
	switch {
	case !is:
		return err
	case said.Class == "CommandNotFound":
		return fmt.Errorf("it runs %s, which cannot load the certificates of a display again, as 6.0 can; migrate it to a newer QEMU, or stop and start it",
			version)
	}
	return filesRefused{fmt.Errorf("QEMU does not take the files: %w", said)}
}

// printed is what a machine says of itself, fit for a message.
func printed(text string) string {
	clean := func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}
	return cut(strings.ToValidUTF8(strings.Map(clean, text), "?"), 200)
}
