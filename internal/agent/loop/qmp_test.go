package loop

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
)

// scriptedQEMU answers at a QMP socket as QEMU does, in what is used of it here: versions of QEMU that are not installed, and
// machines that have been taken over. The real one is what the recipe is tested with.
type scriptedQEMU struct {
	greeting string            // before anything else
	answers  map[string]string // by command
}

func (q scriptedQEMU) listen(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go q.serve(conn)
		}
	}()
}

func (q scriptedQEMU) serve(conn net.Conn) {
	defer conn.Close()
	fmt.Fprintln(conn, q.greeting)
	in := bufio.NewScanner(conn)
	for in.Scan() {
		var asked struct{ Execute, ID string }
		if json.Unmarshal(in.Bytes(), &asked) != nil {
			return
		}
		answer, ok := q.answers[asked.Execute]
		if !ok {
			answer = `{"error": {"class": "CommandNotFound", "desc": "The command ` + asked.Execute + ` has not been found"}, "id": "ID"}`
		}
		fmt.Fprintln(conn, `{"timestamp": {"seconds": 1, "microseconds": 1}, "event": "RTC_CHANGE", "data": {"offset": 1}}`)
		fmt.Fprintln(conn, strings.ReplaceAll(answer, "ID", asked.ID))
	}
}

// scripted is a QEMU of a version with a display at an address.
func scripted(version, display, reload string) scriptedQEMU {
	host, port, _ := net.SplitHostPort(display)
	major, rest, _ := strings.Cut(version, ".")
	q := scriptedQEMU{
		greeting: `{"QMP": {"version": {"qemu": {"micro": 0, "minor": ` + rest + `, "major": ` + major + `}, "package": ""}, "capabilities": ["oob"]}}`,
		answers: map[string]string{
			"qmp_capabilities":  `{"return": {}, "id": "ID"}`,
			"query-name":        `{"return": {"name": "web1"}, "id": "ID"}`,
			"query-vnc-servers": `{"return": [{"server": [{"host": "` + host + `", "service": "` + port + `", "websocket": false}], "id": "default"}], "id": "ID"}`,
			"qom-list":          `{"return": [{"name": "type", "type": "string"}, {"name": "tls0", "type": "child<tls-creds-x509>"}], "id": "ID"}`,
			"qom-get":           `{"return": "/etc/pki/qemu/", "id": "ID"}`,
		},
	}
	if reload != "" {
		q.answers["display-reload"] = reload
	}
	return q
}

func socketDirectory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp") // a socket's path may have 107 octets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestQMPReload: what a QEMU says to display-reload, by its version and its files.
func TestQMPReload(t *testing.T) {
	dir := socketDirectory(t)
	for i, c := range []struct {
		q       scriptedQEMU
		says    string
		refused bool
	}{
		{scripted("7.2", "127.0.0.1:5900", `{"return": {}, "id": "ID"}`), "", false},
		{scripted("5.2", "127.0.0.1:5900", ""), "it runs QEMU 5.2.0, which cannot load the certificates of a display again, as 6.0 can", false},
		{scripted("8.0", "127.0.0.1:5900", `{"error": {"class": "GenericError", "desc": "The certificate and the given key do not match."}, "id": "ID"}`),
			"QEMU does not take the files: The certificate and the given key do not match.", true},
		{scriptedQEMU{greeting: "220 mail.example ESMTP"}, "it does not greet as QEMU does", false},
		{scriptedQEMU{greeting: `{"QMP": {}}`, answers: map[string]string{"qmp_capabilities": strings.Repeat("x", 2<<20)}}, "token too long", false},
		{scripted("7.2", "127.0.0.1:5900", strings.Repeat(`{"event": "X"}`+"\n", 2000)), "no answer among 1000 messages", false},
	} {
		socket := filepath.Join(dir, fmt.Sprint(i))
		c.q.listen(t, socket)
		err := reloadQMP(t.Context(), socket)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%d: %v, where %q is expected", i, err, c.says)
		}
		if _, is := err.(filesRefused); is != c.refused {
			t.Errorf("%d: %T", i, err)
		}
	}
}

// TestMachinesOfQMP: those with sockets and displays of ours are found; what is no socket, or of no machine, is passed over, and
// an address that is not this host's is never connected to.
func TestMachinesOfQMP(t *testing.T) {
	dir := socketDirectory(t)
	ok := `{"return": {}, "id": "ID"}`
	scripted("7.2", "127.0.0.1:5901", ok).listen(t, filepath.Join(dir, "a.sock"))
	scripted("7.2", "192.0.2.77:5901", ok).listen(t, filepath.Join(dir, "far.sock"))
	other := scripted("7.2", "127.0.0.1:5902", ok)
	other.answers["qom-get"] = `{"return": "/etc/pki/other", "id": "ID"}`
	other.listen(t, filepath.Join(dir, "other.sock"))
	none := scripted("7.2", "127.0.0.1:5902", ok)
	none.answers["query-vnc-servers"] = `{"return": [{"server": [], "id": "default"}], "id": "ID"}`
	none.listen(t, filepath.Join(dir, "none.sock"))
	nameless := scripted("7.2", "[::1]:5903", ok)
	nameless.answers["query-name"] = `{"return": {}, "id": "ID"}`
	nameless.listen(t, filepath.Join(dir, "nameless.sock"))
	(scriptedQEMU{greeting: "hello"}).listen(t, filepath.Join(dir, "strange.sock"))
	for name, make := range map[string]func(string) error{
		"file": func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"link": func(p string) error { return os.Symlink(filepath.Join(dir, "a.sock"), p) },
		"dead.sock": func(p string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		},
	} {
		if err := make(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := machinesOfQMP(t.Context(), dir, "/etc/pki/qemu")
	if err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), "strange.sock could not be asked: it does not greet") {
		t.Errorf("error %v", err)
	}
	found := map[string]int{}
	c := &consumer{}
	for _, m := range all {
		found[m.display]++
		if _, err := c.shown(t.Context(), m); strings.HasPrefix(m.display, "192") && (err == nil || !strings.Contains(err.Error(), "no address of this host")) {
			t.Errorf("%s: %v", m.display, err)
		}
	}
	if len(all) != 3 || found["127.0.0.1:5901"] != 1 || found["192.0.2.77:5901"] != 1 || found["[::1]:5903"] != 1 {
		t.Errorf("found are %v", all)
	}
	if all, err := machinesOfQMP(t.Context(), filepath.Join(dir, "nowhere"), "/etc/pki/qemu"); err != nil || all != nil {
		t.Errorf("a directory that is not there: %v %v", all, err)
	}
}

// TestReloadVNC: files that no machine takes are a failure; files that one takes are good, and who did not is remembered.
func TestReloadVNC(t *testing.T) {
	refusal := `{"error": {"class": "GenericError", "desc": "do not match"}, "id": "ID"}`
	for _, c := range []struct {
		reloads []string
		fails   bool
		reasons int
	}{
		{[]string{refusal, refusal}, true, 1}, {[]string{refusal, `{"return": {}, "id": "ID"}`}, false, 1}, {[]string{""}, false, 1}, {nil, false, 0},
	} {
		dir := socketDirectory(t)
		for i, reload := range c.reloads {
			scripted("7.2", "127.0.0.1:1", reload).listen(t, filepath.Join(dir, fmt.Sprint(i)))
		}
		con := &consumer{system: probe.System{}}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		err := con.reloadVNC(ctx, recipe.Step{Action: actionReloadQEMU, With: map[string]string{"dir": "/etc/pki/qemu", "sockets": dir}})
		cancel()
		if (err != nil) != c.fails || len(con.reasons) != c.reasons {
			t.Errorf("%v: %v, reasons %v", c.reloads, err, con.reasons)
		}
	}
}

func TestVNCAddress(t *testing.T) {
	for said, want := range map[string]string{
		"127.0.0.1:0\n": "127.0.0.1:5900", ":1\n\n": "127.0.0.1:5901", "[::1]:2": "[::1]:5902", "localhost:3": "127.0.0.1:5903", "192.0.2.1:59635": "192.0.2.1:65535",
		"": "", "127.0.0.1:59636": "", "/run/x.sock": "", "a:b": "", ":-1": "",
	} {
		if got := vncAddress(said); got != want {
			t.Errorf("%q is %q, not %q", said, got, want)
		}
	}
}

// TestMonitorReload reads what virsh prints of QEMU's answer, before libvirt had a call of its own.
func TestMonitorReload(t *testing.T) {
	for out, want := range map[string]string{
		`{"return":{},"id":"libvirt-410"}`: "",
		`{"id":"libvirt-9","error":{"class":"CommandNotFound","desc":"The command display-reload has not been found"}}`: "a QEMU before 6.0, which cannot",
		`{"id":"libvirt-9","error":{"class":"GenericError","desc":"do not match"}}`:                                     "QEMU does not take the files: do not match",
		`error`: "is no JSON",
	} {
		err := monitorReload(out)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", out, err)
		}
	}
}
