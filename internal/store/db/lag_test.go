package db_test

import (
	"testing"
	"time"

	"chancery/internal/store/db"
)

// TestLag looks at both servers each half a second, as Watch does.
func TestLag(t *testing.T) {
	var l db.Lag
	now, log := time.Now(), int64(1000)
	// looks is some seconds of looks, at a primary that writes 10 octets and makes a heartbeat each time.
	looks := func(seconds int, standby func() (log, beat int64)) {
		for range 2 * seconds {
			now, log = now.Add(500*time.Millisecond), log+10
			l.Primary(now, log, log)
			if standby != nil {
				has, beat := standby()
				l.Standby(now.Add(200*time.Millisecond), has, beat)
			}
		}
	}
	stands := func(when string, late, behind bool) {
		t.Helper()
		if gotLate, gotBehind := l.Stands(); gotLate != late || gotBehind != behind {
			t.Fatalf("%s: left alone %t, behind %t", when, gotLate, gotBehind)
		}
	}
	follows := func() (int64, int64) { return log, log }
	stands("before anything was seen", false, false)
	looks(1, nil)
	stands("while only the primary has answered", true, false)
	looks(1, follows)
	stands("it follows", false, false)
	if b := l.Measured(); b == nil || *b != (db.Behind{}) {
		t.Fatalf("it has all, and is behind by %+v", b)
	}
	looks(60, func() (int64, int64) { return log - 20, log - 20 })
	stands("it follows, a second behind", false, false)
	if b := l.Measured(); b == nil || b.For != 1200*time.Millisecond || b.Octets != 20 {
		t.Fatalf("two looks behind it is behind by %+v", b)
	}
	stopped := log
	looks(1, func() (int64, int64) { return stopped, stopped })
	stands("it stopped a second ago", false, false)
	looks(2, func() (int64, int64) { return stopped, stopped })
	stands("it stopped three seconds ago", true, true)
	looks(60, func() (int64, int64) { return stopped, stopped })
	stands("it stopped a minute ago", true, true)
	if b := l.Measured(); b == nil || b.For.Round(time.Second) != 63*time.Second || b.Octets != log-stopped {
		t.Fatalf("a minute after it stopped it is behind by %+v", b)
	}
	looks(3, follows)
	stands("it follows for three seconds", true, true)
	looks(3, func() (int64, int64) { return log - 100, log - 100 })
	looks(3, follows)
	stands("it comes and goes", true, true)
	looks(4, follows)
	stands("it follows for long", false, false)
	looks(3, nil)
	stands("it says nothing", true, true)
	l.Forget()
	if b := l.Measured(); b != nil {
		t.Fatalf("nothing is known, and it is behind by %+v", b)
	}
	looks(10, nil)
	stands("it has not answered since it was away", true, false)
	l.Standby(now, log-100, log-100)
	stands("it is back, and behind", true, true)
	l.Forget()
	l.Standby(now, log, log)
	stands("the primary is away", false, false)
	looks(10, follows)
	stands("it follows again", false, false)
	own := log
	looks(3, func() (int64, int64) { return log + 1000, own })
	stands("it has gone its own way, further than the primary", true, true)
	looks(10, follows)
	log -= 500 // another was promoted, which does not have what nobody was told
	looks(3, func() (int64, int64) { return log, log })
	stands("it follows who was promoted", false, false)
}
