package db_test

import (
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// switchboard leads each connection to the server that it is set to at that moment, as a balancer of replicas does.
func switchboard(t *testing.T, to *atomic.Int64) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			onward, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", to.Load()))
			if err != nil {
				from.Close()
				continue
			}
			for a, b := range map[net.Conn]net.Conn{from: onward, onward: from} {
				go func() {
					_, _ = io.Copy(a, b)
					a.Close()
					b.Close()
				}()
			}
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// behindABalancer has the one address to read at lead to a server that has everything, and then to one that lags: what the first showed is
// not believed of the second, and what this node has acknowledged is read in every case.
func behindABalancer(t *testing.T, p pair) {
	var to atomic.Int64
	to.Store(int64(p.primary.Port)) // as a standby that is never behind
	o := p.options
	o.Node, o.ReadURL = "n4", fmt.Sprintf("postgres://chancery@127.0.0.1:%d/chancery?sslmode=disable&connect_timeout=1", switchboard(t, &to))
	d := pkitest.Open(t, o)
	if err := put(t, d, 50); err != nil {
		t.Fatal(err)
	}
	p.standby.Replayed(t, p.primary)
	p.standby.Exec(t, "SELECT pg_wal_replay_pause()")
	defer p.standby.Exec(t, "SELECT pg_wal_replay_resume()")
	if err := put(t, d, 51); err != nil {
		t.Fatal(err)
	}
	err := d.Read(t.Context(), func(held *db.Tx) error { // so that the next needs a connection of its own
		if got, lacks, err := look(t, d); err != nil || got != 51 || lacks {
			t.Errorf("at the one that has it: read %d, lacking %t: %v", got, lacks, err)
		}
		to.Store(int64(p.standby.Port))
		for range 4 { // more at once than there are connections
			if err := d.Read(t.Context(), func(*db.Tx) error {
				got, lacks, err := look(t, d)
				if err != nil || got != 51 || lacks {
					t.Errorf("at the one that lags: read %d, lacking %t: %v", got, lacks, err)
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
