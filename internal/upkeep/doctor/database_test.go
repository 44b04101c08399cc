package doctor

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

// sound is a cluster of three in which nothing is wrong.
func sound() []db.Server {
	settings := func() map[string]string {
		return map[string]string{"fsync": "on", "full_page_writes": "on", "synchronous_commit": "remote_apply", "synchronous_standby_names": "n2",
			"wal_log_hints": "on", "wal_sender_timeout": "4000ms", db.Takeover: "fenced"}
	}
	now := time.Now()
	one := func(address string, standby bool) db.Server {
		return db.Server{System: "7000000000000000001", Database: "16384", Started: address, Timeline: 3, Heartbeat: now, Asked: now,
			Receiver: db.Receiver{Running: standby}, Address: address, Remote: true, Version: "15.18", Number: 150018, Standby: standby, Settings: settings(), TLS: "TLSv1.3",
			Role: "chancery", SeesAll: true, Position: 1 << 30, Connections: db.Connections{Most: 300, Reserved: 3, Used: 20, Role: -1, Database: -1, Logins: 3}}
	}
	all := []db.Server{one("a:5432", false), one("b:5432", true), one("c:5432", true)}
	all[0].Standbys = []db.Follower{{Name: "n2", State: "streaming", Sync: "sync"}, {Name: "n3", State: "streaming", Sync: "async"}}
	return all
}

func look(o Database, servers []db.Server) []finding.Finding {
	r := &databaseReport{}
	r.judge(o, servers)
	return r.found
}

// TestEachRuleOfTheDatabase breaks each rule, and nothing but what goes with it.
func TestEachRuleOfTheDatabase(t *testing.T) {
	set := func(name, value string, of ...int) func([]db.Server) {
		return func(all []db.Server) {
			for _, i := range of {
				all[i].Settings[name] = value
			}
		}
	}
	broken := map[string]bool{}
	for _, c := range []struct {
		rules  string // what is told beside what is right; empty for nothing
		wanted db.Durability
		spoil  func(all []db.Server)
	}{
		{"", db.Synchronous, func([]db.Server) {}},
		{"", db.Provider, func([]db.Server) {}},
		{"server.unreachable", db.Synchronous, func(all []db.Server) { all[2] = db.Server{Address: "c:5432", Err: errors.New("refused")} }},
		{"primary.none", db.Synchronous, func(all []db.Server) { all[0].Standby = true }},
		{"primary.several", db.Synchronous, func(all []db.Server) { all[1].Standby = false }},
		{"sync.names failover.loses sync.local", db.Local, set("synchronous_standby_names", "", 0)},
		{"sync.names failover.loses", db.Synchronous, set("synchronous_standby_names", " ", 0)},
		{"sync.missing", db.Synchronous, func(all []db.Server) { all[0].Standbys = all[0].Standbys[1:] }},
		{"sync.commit failover.loses", db.Provider, set("synchronous_commit", "local", 0)},
		{"sync.commit failover.loses", db.Provider, set("synchronous_commit", "remote_write", 0)},
		{"standby.behind", db.Synchronous, func(all []db.Server) { all[2].Position = 0 }},
		{"standby.behind", db.Synchronous, func(all []db.Server) { all[0].Standbys[1].Behind = time.Minute }},
		{"standby.severed sync.missing", db.Synchronous, func(all []db.Server) { all[0].Standbys = nil }},
		{"standby.severed", db.Synchronous, func(all []db.Server) { all[2].Receiver.Running = false }},
		{"standby.severed", db.Synchronous, func(all []db.Server) { all[2].Receiver.State = "waiting" }},
		{"standby.severed", db.Synchronous, func(all []db.Server) { all[2].Receiver.Silent = time.Hour }},
		{"", db.Synchronous, func(all []db.Server) { all[2].Receiver.State, all[2].Receiver.Silent = "streaming", 20*time.Second }},
		{"standby.behind", db.Synchronous, func(all []db.Server) { all[2].Heartbeat = all[2].Heartbeat.Add(-time.Minute) }},
		{"", db.Synchronous, func(all []db.Server) { // the primary was asked later
			all[0].Heartbeat, all[0].Asked = all[0].Heartbeat.Add(time.Minute), all[0].Asked.Add(time.Minute)
		}},
		{"standby.timeline", db.Synchronous, func(all []db.Server) { all[2].Timeline = 2 }},
		{"standby.timeline standby.severed", db.Synchronous, func(all []db.Server) { all[2].Timeline, all[2].Receiver.Running = 4, false }},
		{"cluster.mixed", db.Synchronous, func(all []db.Server) { all[2].System, all[2].Receiver.Running = "7000000000000000002", false }},
		{"slot.lost", db.Synchronous, func(all []db.Server) { all[0].Slots = []db.Slot{{Name: "gone", Status: "lost"}} }},
		{"slot.holds", db.Synchronous, func(all []db.Server) {
			all[0].Slots = []db.Slot{{Name: "gone", Keeps: 2 << 30}, {Name: "here", Active: true, Keeps: 2 << 30}}
		}},
		{"rewind.impossible", db.Synchronous, set("wal_log_hints", "off", 0)},
		{"", db.Synchronous, func(all []db.Server) { all[0].Settings["wal_log_hints"], all[0].Checksums = "off", true }},
		{"sender.slow", db.Synchronous, set("wal_sender_timeout", "60000ms", 0)},
		{"sender.slow", db.Synchronous, set("wal_sender_timeout", "0ms", 0)},
		{"takeover.unfenced", db.Synchronous, set(db.Takeover, "", 0)},
		{"", db.Synchronous, set(db.Takeover, "checked", 0)},
		{"", db.Provider, set(db.Takeover, "", 0)},
		{"privileges", db.Synchronous, func(all []db.Server) { all[0].SeesAll, all[0].Standbys[0] = false, db.Follower{Name: "n2"} }},
		{"fsync.off", db.Synchronous, set("fsync", "off", 1)},
		{"pages.off", db.Synchronous, set("full_page_writes", "off", 1)},
		{"version.old version.mixed", db.Synchronous, func(all []db.Server) { all[1].Version, all[1].Number = "12.20", 120020 }},
		{"tls.none", db.Synchronous, func(all []db.Server) { all[1].TLS = "" }},
		{"", db.Synchronous, func(all []db.Server) { all[1].TLS, all[1].Remote = "", false }},
		{"tls.unverified", db.Synchronous, func(all []db.Server) { all[1].Unverified = true }},
		{"clock.differs", db.Synchronous, func(all []db.Server) { all[1].Clock = -3 * time.Second }},
		{"", db.Synchronous, func(all []db.Server) { all[1].Clock, all[1].Doubt = 3*time.Second, 4*time.Second }},
		{"clock.wrong", db.Synchronous, func(all []db.Server) { all[1].Clock = time.Hour }},
		{"connections.few", db.Synchronous, func(all []db.Server) { all[0].Connections.Most = 50 }},
		{"connections.few", db.Synchronous, func(all []db.Server) { all[0].Connections.Role = 17 }},
		{"connections.used", db.Synchronous, func(all []db.Server) { all[0].Connections.Used = 250 }},
		{"idle", db.Synchronous, func(all []db.Server) { all[0].Idle = 2 }},
	} {
		servers := sound()
		c.spoil(servers)
		told := map[string]bool{}
		for _, f := range look(Database{Durability: c.wanted, Nodes: 3}, servers) {
			if f.Message == "" || f.Level != finding.OK && (f.Do == "" || f.Seen == "") {
				t.Errorf("%q says too little: %+v", c.rules, f)
			}
			if f.Level != finding.OK {
				rule := strings.TrimPrefix(f.Check, "database.")
				told[rule], broken[f.Check] = true, true
				if !slices.Contains(strings.Fields(c.rules), rule) {
					t.Errorf("%q, durability %s: %+v", c.rules, c.wanted, f)
				}
			}
		}
		for rule := range strings.FieldsSeq(c.rules) {
			if !told[rule] && !(c.wanted == db.Local && rule == "sync.names") {
				t.Errorf("%q, durability %s: %s is not told", c.rules, c.wanted, rule)
			}
		}
	}
	alone := sound()[:1]
	if found := look(Database{Durability: db.Synchronous}, alone); found[0].Check != "database.primary.alone" {
		t.Errorf("a URL with one of three: %+v", found)
	}
	r := &databaseReport{}
	r.judgeReads([]db.Server{sound()[0], {Address: "d", Err: errors.New("refused")}}, sound())
	if len(r.found) != 2 || r.found[0].Check != "database.read.primary" {
		t.Errorf("the primary is read: %+v", r.found)
	}
	for what, spoil := range map[string]func(*db.Server){
		"another cluster":      func(s *db.Server) { s.System = "7000000000000000002" },
		"another database":     func(s *db.Server) { s.Database = "16385" },
		"a copy that promoted": func(s *db.Server) { s.Standby, s.Started = false, "elsewhere" },
	} {
		read := sound()[1]
		spoil(&read)
		apart := &databaseReport{}
		if apart.judgeReads([]db.Server{read}, sound()); len(apart.found) != 1 || apart.found[0].Check != "database.read.foreign" {
			t.Errorf("%s is read: %+v", what, apart.found)
		}
		r.found = append(r.found, apart.found...)
	}
	own := sound()[1]
	own.Started, own.Receiver.Running = "one that the URL does not name", false
	severed := &databaseReport{}
	if severed.judgeReads([]db.Server{own}, sound()); len(severed.found) != 1 || severed.found[0].Check != "database.standby.severed" {
		t.Errorf("a standby that is read and follows nobody: %+v", severed.found)
	}
	for _, f := range append(r.found, finding.Finding{Check: "database.primary.alone"}) {
		broken[f.Check] = true
	}
	for _, rule := range DatabaseRules() {
		if !broken[rule.ID] && !strings.HasPrefix(rule.ID, "database.file.") {
			t.Errorf("nothing breaks %s", rule.ID)
		}
	}
}

func TestNoFailoverWithoutAStandby(t *testing.T) {
	all := sound()[:1]
	all[0].Standbys, all[0].Settings["synchronous_standby_names"] = nil, ""
	for _, f := range look(Database{Durability: db.Local}, all) {
		if f.Level != finding.OK {
			t.Errorf("a server by itself: %+v", f)
		}
	}
}

func TestFileIsMissing(t *testing.T) {
	found, err := DatabaseLook(t.Context(), Database{URL: "sqlite:" + filepath.Join(t.TempDir(), "none")})
	if err != nil || len(found) != 1 || found[0].Check != "database.file.missing" || found[0].Do == "" {
		t.Errorf("%+v, %v", found, err)
	}
}
