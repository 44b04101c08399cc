package probe

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"chancery/internal/run/consumer"
)

// TestListenersAreFoundAndOutlived: this process listens and runs; one that ended does not, even before its parent asked why,
// and neither does another with its number.
func TestListenersAreFoundAndOutlived(t *testing.T) {
	found := 0
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Log(err) // a machine without IPv6
			continue
		}
		defer l.Close()
		found++
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range []string{l.Addr().String(), "localhost:" + port} {
			now := Listeners(address)
			all := now.Processes
			if len(all) != 1 || all[0].PID != os.Getpid() || !all[0].Runs() || now.Ended() || !strings.Contains(all[0].String(), "(process ") {
				t.Errorf("%s: %v", address, all)
			}
		}
	}
	if found < 2 {
		t.Fatalf("%d kinds of addresses were tried", found)
	}
	closed, err := consumer.FreeAddress() // which nobody else takes while nothing listens there
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", closed)
	if err != nil {
		t.Fatal(err)
	}
	unseen := Listeners(closed)
	unseen.Processes = nil // as an agent finds it that may not see what others have open
	if unseen.Ended() {
		t.Error("it listens still")
	}
	l.Close()
	if !unseen.Ended() {
		t.Error("it does not listen any more")
	}
	again, err := net.Listen("tcp", closed)
	if err != nil {
		t.Fatal(err)
	}
	if !unseen.Ended() {
		t.Error("another listens there")
	}
	again.Close()
	for _, address := range []string{closed, "nonsense", "localhost:https", "127.0.0.2:1"} {
		if all := Listeners(address); all.Known() || len(all.Processes) != 0 || all.Ended() {
			t.Errorf("%s: %v", address, all)
		}
	}
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	p, alive := processOf(child.Process.Pid)
	if !alive || !p.Runs() {
		t.Errorf("%v does not run", p)
	}
	other := p
	other.born += "1"
	if other.Runs() {
		t.Error("a number is taken for a process")
	}
	in.Close()
	if _, err := out.Read(make([]byte, 1)); err == nil {
		t.Fatal("cat said something")
	}
	for p.Runs() { // it has closed its output and ends; nobody has waited for it yet
	}
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if p.Runs() {
		t.Error("it ended")
	}
}
