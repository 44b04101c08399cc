package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/internal/store/db"
)

// judgeClusters says which servers are not of one cluster: a standby has the system identifier of its primary, whatever its name is.
func (r *databaseReport) judgeClusters(servers []db.Server) {
	var seen []string
	var systems []string
	for _, s := range servers {
		if s.Err != nil || s.System == "" {
			continue
		}
		seen = append(seen, s.Address+" "+s.System)
		if !slices.Contains(systems, s.System) {
			systems = append(systems, s.System)
		}
	}
	if len(systems) > 1 {
		r.tell("cluster.mixed", "", strings.Join(seen, ", "), "", "patronictl list")
	}
}

// judgeStandbys says how far the standbys are, and how many follow.
func (r *databaseReport) judgeStandbys(primary db.Server, servers []db.Server) int {
	for _, s := range servers {
		if s.Err == nil && s.Standby && !foreign(s, primary) {
			r.judgeStandby(s, primary)
		}
	}
	for _, f := range primary.Standbys {
		if f.Behind > behindTime {
			r.tell("standby.behind", f.Name, f.Behind.String(), "", "patronictl list")
		}
	}
	if len(primary.Standbys) > 0 && !primary.SeesAll {
		r.tell("privileges", primary.Address, fmt.Sprintf("%d standbys, of which nothing more is shown", len(primary.Standbys)), "", "GRANT pg_monitor TO "+quoted(primary.Role))
	}
	return len(primary.Standbys)
}

// foreign reports whether a server is of another cluster than the primary.
func foreign(s, primary db.Server) bool {
	return s.System != "" && primary.System != "" && s.System != primary.System
}

// judgeStandby says whether a standby follows, and how far it is. That it has all octets says little of one that receives none: an authority
// with little to do writes few.
func (r *databaseReport) judgeStandby(s, primary db.Server) {
	octets, late := max(0, primary.Position-s.Position), behindBy(s, primary)
	far := fmt.Sprintf("%s of log and %s behind the primary", bytes(octets), late.Round(time.Second))
	bad := len(r.found)
	switch {
	case len(primary.Standbys) == 0:
		r.tell("standby.severed", s.Address, "the primary has no standby; it is "+far, "", "patronictl list")
	case !s.Receiver.Running:
		r.tell("standby.severed", s.Address, "it receives no log (pg_stat_wal_receiver is empty); it is "+far, "", "patronictl list")
	case s.Receiver.State != "" && s.Receiver.State != "streaming":
		r.tell("standby.severed", s.Address, "its receiver of the log is "+s.Receiver.State+"; it is "+far, "", "patronictl list")
	case s.Receiver.Silent > silentTime:
		r.tell("standby.severed", s.Address, fmt.Sprintf("it has heard nothing of its primary for %s; it is %s", s.Receiver.Silent.Round(time.Second), far), "", "patronictl list")
	case octets > behindBytes || late > behindTime:
		r.tell("standby.behind", s.Address, far, "", "patronictl list")
	}
	// One that receives is on the primary's, or comes to it in a moment; one that receives nothing may have gone its own way before.
	if s.Timeline > 0 && primary.Timeline > 0 && (s.Timeline > primary.Timeline || s.Receiver.Running && s.Timeline < primary.Timeline) {
		r.tell("standby.timeline", s.Address, fmt.Sprintf("it is on timeline %d, and the primary on %d", s.Timeline, primary.Timeline), "", "patronictl list")
	}
	if len(r.found) == bad {
		r.ok("standby", s.Address, "it receives the primary's log, and is %s", far)
	}
}

// behindBy is how much older the newest heartbeat of the nodes is that a standby shows than the primary's, without what came while the
// primary was not asked yet.
func behindBy(s, primary db.Server) time.Duration {
	if s.Heartbeat.IsZero() || primary.Heartbeat.IsZero() {
		return 0
	}
	return max(0, primary.Heartbeat.Sub(s.Heartbeat)-max(0, primary.Asked.Sub(s.Asked)))
}

func (r *databaseReport) judgeSlots(primary db.Server) {
	for _, slot := range primary.Slots {
		drop := "SELECT pg_drop_replication_slot('" + strings.ReplaceAll(slot.Name, "'", "''") + "')"
		switch {
		case slot.Status == "lost":
			r.tell("slot.lost", primary.Address, slot.Name+" is lost", "", drop)
		case !slot.Active && slot.Keeps > slotBytes:
			r.tell("slot.holds", primary.Address, fmt.Sprintf("%s holds %s", slot.Name, bytes(slot.Keeps)), "", drop)
		}
	}
}

// judgeReads judges the database that this node reads from.
func (r *databaseReport) judgeReads(reads, servers []db.Server) {
	var primary db.Server // nobody, where none answers or several do
	if writes := slices.DeleteFunc(slices.Clone(servers), func(s db.Server) bool { return s.Err != nil || s.Standby }); len(writes) == 1 {
		primary = writes[0]
	}
	for _, s := range reads {
		bad := len(r.found)
		switch {
		case s.Err != nil:
			r.tell("read.unreachable", s.Address, s.Err.Error(), "", "")
		case foreign(s, primary):
			r.tell("read.foreign", s.Address, fmt.Sprintf("its system identifier is %s, and the primary's %s", s.System, primary.System), "", "")
		case s.Database != "" && primary.Database != "" && s.Database != primary.Database:
			r.tell("read.foreign", s.Address, fmt.Sprintf("it is the database with the OID %s, and the primary's has %s", s.Database, primary.Database), "", "")
		case !s.Standby && s.Started != "" && primary.Started != "" && s.Started != primary.Started:
			r.tell("read.foreign", s.Address, "it takes writes, and is not the primary", "", "patronictl list")
		case !s.Standby && len(servers) > 1:
			r.tell("read.primary", s.Address, "it takes writes", "it is the primary now, which may be so after a failover", "patronictl list")
		case s.Standby && primary.Address != "" && !slices.ContainsFunc(servers, func(o db.Server) bool { return o.Err == nil && o.Standby && o.Started == s.Started }):
			r.judgeStandby(s, primary) // it is judged where the primary's URL names it, else
		}
		if len(r.found) == bad {
			r.ok("read", s.Address, "this node reads here")
		}
	}
}
