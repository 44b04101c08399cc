package doctor

import (
	"slices"
	"strings"

	"chancery/internal/upkeep/examine"
	"chancery/internal/upkeep/finding"
)

// DatabaseRules lists the rules of DatabaseLook, by ID.
func DatabaseRules() []examine.Rule {
	all := slices.Concat(reachRules(), durableRules(), serverRules(), sqliteRules())
	slices.SortFunc(all, func(a, b examine.Rule) int { return strings.Compare(a.ID, b.ID) })
	return all
}

func reachRules() []examine.Rule {
	return []examine.Rule{
		{ID: "database.server.unreachable", Level: finding.Warning, About: "a server that the URL names does not answer",
			Do: "start it, or mend the way to it; while it is away, one more loss may stop writing"},
		{ID: "database.primary.none", Level: finding.Error, About: "no server takes writes: those that answer are standbys",
			Do: "wait for Patroni, which promotes a synchronous standby once the lost primary's lock has run out; if it does not, look at it and at etcd"},
		{ID: "database.primary.several", Level: finding.Error, About: "more than one server takes writes",
			Do: "stop the one that Patroni does not name as leader; what only that one has is not acknowledged where durability is synchronous"},
		{ID: "database.primary.alone", Level: finding.Warning, About: "standbys follow the primary, and the URL does not name them",
			Do: "name all members in the URL, or the node stays with a server that is lost"},
		{ID: "database.cluster.mixed", Level: finding.Error, About: "the servers of the URL are of different clusters: their system identifiers differ",
			Do: "take the one out of the URL that is none of the authority's; a standby that was made anew by initdb has to be made by patronictl reinit"},
		{ID: "database.read.foreign", Level: finding.Error, About: "the database to read from is no standby of the one that is written to: the node does not start, or reads nothing there",
			Do: "name this node's own standby in database_read, with the database of the same name, or leave it out"},
		{ID: "database.read.primary", Level: finding.Warning, About: "the database to read from is the one that is written to",
			Do: "name this node's own standby; else it answers nothing when the primary is lost"},
		{ID: "database.read.unreachable", Level: finding.Error, About: "the database to read from does not answer",
			Do: "start it; until then everything is read from the primary"},
		{ID: "database.tls.none", Level: finding.Error, About: "the connection crosses the network without TLS",
			Do: "turn ssl on at the server, and say sslmode=verify-full in the URL"},
		{ID: "database.tls.unverified", Level: finding.Error, About: "TLS is used, and nobody looks whose certificate the server shows",
			Do: "say sslmode=verify-full and sslrootcert in the URL"},
		{ID: "database.clock.differs", Level: finding.Warning, About: "the clocks of this machine and of the server are apart",
			Do: "set both by NTP; leases and validities are reckoned by the nodes' clocks"},
		{ID: "database.clock.wrong", Level: finding.Error, About: "the clocks are more than five minutes apart, more than nodes put up with among each other",
			Do: "find out which is wrong and set it by NTP"},
	}
}

func durableRules() []examine.Rule {
	return []examine.Rule{
		{ID: "database.sync.names", Level: finding.Error, About: "durability is synchronous and the server names no synchronous standby: nodes are read-only",
			Do: "have Patroni name one: synchronous_mode and synchronous_mode_strict"},
		{ID: "database.sync.missing", Level: finding.Error, About: "no synchronous standby is connected: commits wait until one is",
			Do: "start a standby; do not empty synchronous_standby_names, or what is acknowledged from then on can be lost"},
		{ID: "database.sync.local", Level: finding.Warning, About: "standbys follow, and commits do not wait for them",
			Do: "set durability synchronous, and synchronous_mode in Patroni"},
		{ID: "database.sync.commit", Level: finding.Error, About: "durability is left to the provider, and the server acknowledges commits that are on one disk or on none",
			Do: "set synchronous_commit to on or remote_apply, or durability to synchronous"},
		{ID: "database.failover.loses", Level: finding.Error, About: "a failover now would lose acknowledged commits",
			Do: "see to synchronous replication first; do not fail over by hand"},
		{ID: "database.takeover.unfenced", Level: finding.Warning, About: "nothing says that a primary whose machine stood still is kept from taking over again, which " +
			"would lose what was acknowledged meanwhile",
			Do: "start Patroni by deploy/patroni/patroni-fenced, or where Patroni is 3.1 and etcd 3.4.31, 3.5.13 or newer, set chancery.takeover to checked"},
		{ID: "database.standby.behind", Level: finding.Warning, About: "a standby is behind",
			Do: "look at its disk and its network; a standby that reads are answered from shows old data"},
		{ID: "database.standby.severed", Level: finding.Warning, About: "a standby answers and does not follow the primary",
			Do: "look at its log; patronictl reinit makes it anew from the primary"},
		{ID: "database.standby.timeline", Level: finding.Warning, About: "a standby is on another timeline than the primary: it has missed a failover, or went its own way",
			Do: "wait a moment after a failover; then patronictl reinit makes it anew from the primary"},
		{ID: "database.slot.lost", Level: finding.Warning, About: "the primary has removed log that a replication slot was to keep: its standby cannot go on by it",
			Do: "patronictl reinit makes the standby anew; drop the slot if nobody uses it"},
		{ID: "database.slot.holds", Level: finding.Warning, About: "a replication slot that nobody reads keeps the primary's log from being removed, until its disk is full",
			Do: "start its standby, or drop the slot; bound it by max_slot_wal_keep_size"},
		{ID: "database.rewind.impossible", Level: finding.Warning, About: "neither wal_log_hints nor checksums are on: a lost primary cannot come back by pg_rewind, only by a whole copy",
			Do: "turn wal_log_hints on"},
		{ID: "database.sender.slow", Level: finding.Warning, About: "a synchronous standby that stands still is waited for longer than ten seconds",
			Do: "set wal_sender_timeout to 4 s, so that Patroni chooses another"},
		{ID: "database.privileges", Level: finding.Warning, About: "our role may not see how standbys stand, so part of this look is blind",
			Do: "grant it pg_monitor"},
	}
}

func serverRules() []examine.Rule {
	return []examine.Rule{
		{ID: "database.fsync.off", Level: finding.Error, About: "fsync is off: a crash of the machine loses acknowledged commits, or the database",
			Do: "turn fsync on"},
		{ID: "database.pages.off", Level: finding.Error, About: "full_page_writes is off: a crash of the machine can damage the database",
			Do: "turn full_page_writes on"},
		{ID: "database.version.old", Level: finding.Error, About: "the release of PostgreSQL is older than 13, which is not supported",
			Do: "upgrade the server"},
		{ID: "database.version.mixed", Level: finding.Warning, About: "the servers are of different releases",
			Do: "bring all to the newest of them, standbys first"},
		{ID: "database.connections.few", Level: finding.Error, About: "the server allows fewer connections than the nodes can take together",
			Do: "raise max_connections on all members, standbys first"},
		{ID: "database.connections.used", Level: finding.Warning, About: "more than four fifths of the connections are in use",
			Do: "raise max_connections, or find out who has them: pg_stat_activity"},
		{ID: "database.idle", Level: finding.Warning, About: "sessions have stood idle within a transaction for more than a minute",
			Do: "find out whose they are: they hold locks, and keep old rows from being cleaned up"},
	}
}

func sqliteRules() []examine.Rule {
	return []examine.Rule{
		{ID: "database.file.missing", Level: finding.Error, About: "the file of the store is not there",
			Do: "restore the newest backup"},
		{ID: "database.file.journal", Level: finding.Error, About: "the file is not in WAL mode",
			Do: "let the node make its file; nothing else may open it for writing"},
		{ID: "database.file.network", Level: finding.Error, About: "the file is on a network file system, on which SQLite's locks and shared memory cannot be relied upon",
			Do: "put the data directory on a local disk, or move to PostgreSQL"},
		{ID: "database.file.space", Level: finding.Warning, About: "the disk that holds the store is nearly full",
			Do: "free space there; a node whose disk is full refuses to write"},
	}
}
