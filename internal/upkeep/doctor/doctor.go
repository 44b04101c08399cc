// Package doctor looks for what will hurt before it hurts: keys and their wraps, the files of a node, the database, the
// clock, issuers and their CRLs. Each finding names what was seen and the command that mends it. Ports, files and hosts are
// looked at by package examine.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/rollout"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/finding"
)

// Node is what a node's doctor looks at.
type Node struct {
	Dir    datadir.Dir
	DB     *db.DB
	Keys   *keys.Store
	Issuer IssuerLook // nil leaves issuers and CRLs out
	Hosts  HostLook   // nil leaves hosts out
	Trust  TrustLook  // nil leaves out what pools trust
	Moves  MoveLook   // nil leaves rollouts out
	Drills DrillLook  // nil leaves out whether backups were tried
	Pairs  PairLook   // nil leaves out whether issuers' keys are those of their certificates
	Twins  TwinLook   // nil leaves out issuers that are taken for each other
	Clones CloneLook  // nil leaves the other nodes out

	Renewed RenewedLook // nil leaves out who presents what issuers had before they were renewed

	// OfflineWarning is how long before its end the CRL of an offline root is worth a warning; the settings say it.
	OfflineWarning time.Duration
}

// IssuerLook lists the issuers with the end of their newest CRL.
type IssuerLook func(ctx context.Context) ([]IssuerState, error)

// IssuerState is how an issuer stands.
type IssuerState struct {
	Name       string
	Root       bool
	Online     bool // the authority holds its key
	Retired    bool
	Pending    bool
	NotAfter   time.Time
	NextUpdate time.Time // of its newest CRL; zero where it has none
	RenewAt    time.Time // when a node was to sign its next

	// Of an issuer that signs its complete CRL at each revocation, and has nothing shorter: how many entries that has, and up to how many it is
	// signed at once. Zero of any other.
	Entries, WholeUpTo int64
}

// HostLook counts the hosts.
type HostLook func(ctx context.Context, now time.Time) (host.Counts, error)

// TrustLook lists what of the pools' trust ends before a time.
type TrustLook func(ctx context.Context, before time.Time) ([]trust.Ending, error)

// DrillLook says how the newest drill of a backup went, and how often one is wanted; 0 is never.
type DrillLook func(ctx context.Context) (last backup.Drilled, every time.Duration, err error)

// PairLook compares the issuers' keys on this node with their certificates, and says how many it compared.
type PairLook func(ctx context.Context) ([]ca.KeyProblem, int, error)

// MoveLook lists the rollouts that are at work.
type MoveLook func(ctx context.Context) ([]rollout.Work, error)

// rollouts warns of those that wait for somebody: while one does, its pool has two roots or issuers, and no other can begin.
func (n *Node) rollouts(ctx context.Context, now time.Time, tell func(finding.Finding)) error {
	all, err := n.Moves(ctx)
	if err != nil {
		return err
	}
	stuck := false
	for _, w := range all {
		if message := w.Stuck(now); message != "" {
			stuck = true
			tell(finding.Finding{Level: finding.Warning, Object: "rollout " + w.ID, Message: message,
				Hint: "chancery rollout status " + w.ID + " names who holds it; mend them, or leave them out: chancery rollout resume " + w.ID + " --except NAME --because WHY"})
		}
	}
	if !stuck {
		tell(finding.Finding{Level: finding.OK, Message: fmt.Sprintf("%d rollouts are at work, and none waits for anybody", len(all))})
	}
	return nil
}

// trust warns of certificates that pools trust and that end, and of their CRLs.
func (n *Node) trust(ctx context.Context, now time.Time, tell func(finding.Finding)) error {
	ending, err := n.Trust(ctx, now.Add(trust.EndingSoon))
	if err != nil {
		return err
	}
	for _, e := range ending {
		hint := "chancery pool trust add " + e.Pool + " NEW.pem, and rotate what is below it away in time: chancery rollout start rotate-away --pool " + e.Pool + " --from " + e.Entry
		if e.CRL {
			hint = "chancery pool trust crl " + e.Pool + " " + e.Entry + " FILE"
		} else if e.Issuer != "" {
			hint = "chancery rollout start rotate-issuer --pool " + e.Pool + ", or rotate-root"
		}
		tell(finding.Finding{Level: finding.Warning, Object: e.Entry, Message: e.String(), Hint: hint})
	}
	if len(ending) == 0 {
		tell(finding.Finding{Level: finding.OK, Message: "nothing that pools trust ends within 30 days"})
	}
	return nil
}

// hosts warns of hosts that wait for somebody's decision, and of what their agents could not do.
func (n *Node) hosts(ctx context.Context, now time.Time, tell func(finding.Finding)) error {
	c, err := n.Hosts(ctx, now)
	if err != nil {
		return err
	}
	warn := func(count int64, message, hint string) {
		if count > 0 {
			tell(finding.Finding{Level: finding.Warning, Message: fmt.Sprintf(message, count), Hint: hint})
		}
	}
	warn(c.Suspect, "%d hosts are suspect: two machines used one identity, and nothing is issued to them", "chancery host list --state suspect, then chancery host replace NAME")
	warn(c.Failed, "%d placements failed, as their agents reported", "chancery host list")
	warn(c.Silent, "%d hosts have joined, and their agents did not call for an hour", "chancery agent status, on the host")
	if c.Suspect+c.Failed+c.Silent == 0 {
		tell(finding.Finding{Level: finding.OK, Message: fmt.Sprintf("%d hosts, %d of them joined", c.Hosts, c.Joined)})
	}
	return nil
}

// looks are all that a node is looked at for, by name.
func (n *Node) looks(ctx context.Context, now time.Time) map[string]finding.Look {
	return map[string]finding.Look{
		"keys.wraps":      func(tell func(finding.Finding)) error { return Wraps(ctx, n.Keys, nil, tell) },
		"keys.tokens":     func(tell func(finding.Finding)) error { return Tokens(ctx, n.Keys, tell) },
		"files":           func(tell func(finding.Finding)) error { return n.files(tell) },
		"files.login":     func(tell func(finding.Finding)) error { return n.login(now, tell) },
		"offline":         func(tell func(finding.Finding)) error { return n.offline(tell) },
		"database":        func(tell func(finding.Finding)) error { return n.database(ctx, tell) },
		"clock":           func(tell func(finding.Finding)) error { return n.clock(now, tell) },
		"backup.drill":    func(tell func(finding.Finding)) error { return n.drills(ctx, now, tell) },
		"issuers.keys":    func(tell func(finding.Finding)) error { return n.pairs(ctx, tell) },
		"issuers":         func(tell func(finding.Finding)) error { return n.issuers(ctx, now, tell) },
		"issuers.twins":   func(tell func(finding.Finding)) error { return n.twins(ctx, tell) },
		"issuers.renewed": func(tell func(finding.Finding)) error { return n.presented(ctx, now, tell) },
		"clones":          func(tell func(finding.Finding)) error { return n.clones(ctx, tell) },
		"crl.signer":      func(tell func(finding.Finding)) error { return n.signer(ctx, tell) },
		"clones.gone":     func(tell func(finding.Finding)) error { return n.gone(ctx, tell) },
		"hosts":           func(tell func(finding.Finding)) error { return n.hosts(ctx, now, tell) },
		"trust":           func(tell func(finding.Finding)) error { return n.trust(ctx, now, tell) },
		"rollouts":        func(tell func(finding.Finding)) error { return n.rollouts(ctx, now, tell) },
	}
}

// Look looks at a node.
func (n *Node) Look(ctx context.Context, now time.Time) finding.Seq {
	order := []string{"keys.wraps", "keys.tokens", "files", "files.login", "offline", "database", "clock"}
	if n.Pairs != nil {
		order = append(order, "issuers.keys")
	}
	if n.Clones != nil {
		order = append(order, "clones")
	}
	if n.Drills != nil {
		order = append(order, "backup.drill")
	}
	if n.Issuer != nil {
		order = append(order, "issuers", "crl.signer", "clones.gone")
	}
	if n.Twins != nil {
		order = append(order, "issuers.twins")
	}
	if n.Renewed != nil {
		order = append(order, "issuers.renewed")
	}
	if n.Hosts != nil {
		order = append(order, "hosts")
	}
	if n.Trust != nil {
		order = append(order, "trust")
	}
	if n.Moves != nil {
		order = append(order, "rollouts")
	}
	return finding.Run(n.looks(ctx, now), order...)
}

// Wraps holds the sealed keys against the rule of who may open them. With a recovery key, its wraps are opened as well.
func Wraps(ctx context.Context, store *keys.Store, recovery *keys.Recovery, tell func(finding.Finding)) error {
	wrong, checked, err := store.Check(ctx, recovery)
	if err != nil {
		return err
	}
	for _, f := range wrong {
		tell(finding.Finding{
			Level: finding.Error, Object: f.Key, Message: fmt.Sprintf("%s: %s", f.Rule, f.Message),
			Hint: "restore from a backup with the recovery key, or re-key the issuer",
		})
	}
	if checked.Keys == 0 {
		return errors.New("the store holds no key")
	}
	if len(wrong) == 0 {
		tell(finding.Finding{
			Level: finding.OK, Message: fmt.Sprintf("%d keys, %d wraps, %d opened", checked.Keys, checked.Wraps, checked.Opened),
		})
	}
	return nil
}

// files checks the modes of what must not be read by others.
func (n *Node) files(tell func(finding.Finding)) error {
	config, err := n.Dir.Load()
	if err != nil {
		return err
	}
	secret := []string{n.Dir.NodeKey(), n.Dir.AdminKey(), n.Dir.TLS()}
	if config.DatabaseFile == "" {
		secret = append(secret, n.Dir.Database())
	}
	wrong := false
	for _, path := range append(secret, string(n.Dir)) {
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) && (path == n.Dir.AdminKey() || path == n.Dir.TLS()) {
			continue // an administrator may well keep his elsewhere, and the node makes its own anew
		}
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o077 != 0 {
			wrong = true
			tell(finding.Finding{
				Level: finding.Error, Object: path, Message: fmt.Sprintf("it has mode %04o, and others than its owner may reach it", st.Mode().Perm()),
				Hint: "chmod go= " + path,
			})
		}
	}
	if !wrong {
		tell(finding.Finding{Level: finding.OK, Object: string(n.Dir), Message: fmt.Sprintf("%d files are the owner's alone", len(secret))})
	}
	return nil
}

// login warns of a login at the database whose certificate ends: the node renews it at two thirds of its life, so something keeps it.
func (n *Node) login(now time.Time, tell func(finding.Finding)) error {
	leaf, err := n.Dir.LoginCertificate()
	if err != nil || leaf == nil {
		return err
	}
	told := finding.Finding{
		Level: finding.OK, Object: leaf.Subject.CommonName, Message: "the node's login at the database is good until " + leaf.NotAfter.UTC().Format(time.RFC3339),
	}
	switch left := leaf.NotAfter.Sub(now); {
	case left <= 0:
		told.Level, told.Message = finding.Error, "the certificate of the node's login at the database ended at "+leaf.NotAfter.UTC().Format(time.RFC3339)
		told.Hint = "chancery rescue expired makes a new one, on this machine"
	case left < leaf.NotAfter.Sub(leaf.NotBefore)/6:
		told.Level, told.Message = finding.Warning, told.Message+", and should have been renewed"
		told.Hint = "the node's log says why it was not: a node that runs ca must answer, and PostgreSQL take the new certificate (ssl_ca_file)"
	}
	tell(told)
	return nil
}

// offline warns of what was made to be taken away and is still here.
func (n *Node) offline(tell func(finding.Finding)) error {
	left, err := filepath.Glob(filepath.Join(n.Dir.Offline(), "*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		tell(finding.Finding{
			Level: finding.Warning, Object: path, Message: "an offline key, or what opens it, is still on this machine",
			Hint: "move it to two places that are safe and apart, then delete it here",
		})
	}
	if len(left) == 0 {
		tell(finding.Finding{Level: finding.OK, Message: "no offline key is on this machine"})
	}
	return nil
}

func (n *Node) database(ctx context.Context, tell func(finding.Finding)) error {
	version, err := schema.Version(ctx, n.DB)
	if err != nil {
		return err
	}
	report, err := n.DB.DurabilityReport(ctx)
	if err != nil {
		return err
	}
	if unread := n.DB.Unread(); unread != nil {
		f := finding.Finding{Level: finding.Error, Check: "database.read", Object: "database_read", Message: unread.Error()}
		if refusal, ok := errors.AsType[*fault.Error](unread); ok {
			f.Hint = refusal.Hint
		}
		tell(f)
	}
	for _, p := range report.Problems() {
		tell(finding.Finding{Level: finding.Error, Object: string(report.Engine), Message: p})
	}
	if len(report.Problems()) == 0 {
		tell(finding.Finding{
			Level: finding.OK, Object: string(report.Engine),
			Message: fmt.Sprintf("release %s, schema %d, durability %s", report.Version, version, report.Wanted),
		})
	}
	return nil
}

func (n *Node) clock(now time.Time, tell func(finding.Finding)) error {
	if err := n.DB.CheckClock(now); err != nil {
		tell(finding.Finding{Level: finding.Error, Message: err.Error(), Hint: "set the clock by NTP; chrony and systemd-timesyncd both do"})
		return nil
	}
	tell(finding.Finding{Level: finding.OK, Message: "it has not gone back since the store was last written"})
	return nil
}

// drills says whether a backup was tried as often as is wanted, and how that went.
func (n *Node) drills(ctx context.Context, now time.Time, tell func(finding.Finding)) error {
	last, every, err := n.Drills(ctx)
	if err != nil {
		return err
	}
	wanting := last.Wanting(every, now)
	switch {
	case last.Failed != "":
		tell(finding.Finding{Level: finding.Error, Message: wanting, Hint: "chancery backup drill says it again, once the cause is mended"})
	case wanting != "":
		tell(finding.Finding{Level: finding.Warning, Message: wanting, Hint: "chancery backup drill, on the machine of a node"})
	case last.At.IsZero():
		tell(finding.Finding{Level: finding.OK, Message: "no drill is wanted, and none was made; chancery settings set backup.drill=7d has a node make them"})
	default:
		tell(finding.Finding{Level: finding.OK, Message: fmt.Sprintf("on %s a backup was restored and tried: %d rows, %d keys",
			last.At.UTC().Format(time.RFC3339), last.Rows, last.Keys)})
	}
	return nil
}

// pairs names the issuers whose key here is not the one of their certificate, before anything is signed with it.
func (n *Node) pairs(ctx context.Context, tell func(finding.Finding)) error {
	problems, looked, err := n.Pairs(ctx)
	if err != nil {
		return err
	}
	for _, p := range problems {
		tell(finding.Finding{Level: finding.Error, Object: p.Issuer, Message: p.Message,
			Hint: "chancery verify; then bring the right key back from a backup, or make a successor: chancery rollout start rotate-issuer"})
	}
	if len(problems) == 0 {
		tell(finding.Finding{Level: finding.OK, Message: fmt.Sprintf("node %s has %d issuers' keys, and they are those of the certificates", n.Keys.Self(), looked)})
	}
	return nil
}

// issuerSoon is how long before its end an issuer is worth a warning.
const issuerSoon = 180 * 24 * time.Hour

func (n *Node) issuers(ctx context.Context, now time.Time, tell func(finding.Finding)) error {
	states, err := n.Issuer(ctx)
	if err != nil {
		return err
	}
	if len(states) == 0 {
		return errors.New("there is no issuer")
	}
	for _, s := range states {
		switch {
		case s.Pending:
			tell(finding.Finding{
				Level: finding.Warning, Check: "issuer", Object: s.Name, Message: "it waits for its certificate",
				Hint: fmt.Sprintf("chancery issuer csr %s, and chancery issuer import %s --certificate F", s.Name, s.Name),
			})
			continue
		case s.Retired:
		case !now.Before(s.NotAfter):
			tell(finding.Finding{Level: finding.Error, Check: "issuer", Object: s.Name, Message: "it expired on " + s.NotAfter.UTC().Format(time.RFC3339)})
		case s.NotAfter.Sub(now) < issuerSoon:
			tell(finding.Finding{
				Level: finding.Warning, Check: "issuer", Object: s.Name, Message: "it ends on " + s.NotAfter.UTC().Format(time.RFC3339),
				Hint: "chancery issuer renew " + s.Name + " (with its key, where what is above it lasts longer), or chancery rollout start rotate-issuer, or rotate-root",
			})
		default:
			tell(finding.Finding{Level: finding.OK, Check: "issuer", Object: s.Name, Message: "valid until " + s.NotAfter.UTC().Format(time.RFC3339)})
		}
		tell(lookAtCRL(s, n.OfflineWarning, now))
	}
	return nil
}

func lookAtCRL(s IssuerState, offlineWarning time.Duration, now time.Time) finding.Finding {
	f := finding.Finding{Level: finding.OK, Check: "issuer.crl", Object: s.Name, Message: "fresh until " + s.NextUpdate.UTC().Format(time.RFC3339)}
	sign := fmt.Sprintf("chancery crl issue --issuer %s", s.Name)
	if !s.Online {
		sign += " --key-file F"
	}
	switch {
	case s.NextUpdate.IsZero():
		f.Level, f.Message, f.Hint = finding.Error, "it has no CRL, and consumers that want one for every issuer of a path refuse the path", sign
	case !now.Before(s.NextUpdate):
		f.Level, f.Message, f.Hint = finding.Error, "its CRL is past nextUpdate, "+s.NextUpdate.UTC().Format(time.RFC3339), sign
	case s.Online && !s.RenewAt.IsZero() && now.Sub(s.RenewAt) > revocation.Late:
		f.Level, f.Message = finding.Warning, fmt.Sprintf("its CRL was to be signed anew at %s, and was not; it ends at %s",
			s.RenewAt.UTC().Format(time.RFC3339), s.NextUpdate.UTC().Format(time.RFC3339))
		f.Hint = "the log of the node that holds the lease crl says why: chancery clone status"
	case s.Online && !s.Retired && s.WholeUpTo > 0 && s.Entries >= s.WholeUpTo-s.WholeUpTo/10:
		f.Level, f.Message = finding.Warning, fmt.Sprintf("its CRL has %d entries, and with more than %d a revocation shows in it up to five minutes late "+
			"(crl.whole_up_to); OCSP says it at once", s.Entries, s.WholeUpTo)
		f.Hint = fmt.Sprintf("chancery issuer crls %s --delta, with its other choices, where consumers read deltas; or an issuer with partitions, or a greater crl.whole_up_to", s.Name)
	case !s.Online && s.NextUpdate.Sub(now) < offlineWarning:
		f.Level, f.Message, f.Hint = finding.Warning, "the CRL of an offline root ends on "+s.NextUpdate.UTC().Format(time.RFC3339), sign
	}
	return f
}
