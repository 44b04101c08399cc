package clone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"chancery/client"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
)

// errUsed says that another call used the invitation, or took the name, between the look and the transaction.
var errUsed = errors.New("the invitation was used meanwhile")

// auditedRefusals bounds how often one invitation's misuse is recorded, so that nobody fills the audit with it.
const auditedRefusals = 10

// noToken is the one answer to a secret that is worth nothing, whyever: whoever guesses learns nothing from it.
func noToken() error {
	return fault.New(fault.Denied, "this token is not good: it is not of this authority, was used by another machine, was withdrawn, or has ended").
		At("/secret").WithHint("chancery clone invite makes another")
}

// Join registers a machine that has an invitation's secret, as one that waits for an administrator; asked again with the same name
// and keys, it tells how far that has come. Another name or key under a secret that was used is refused, and recorded.
func (s *Service) Join(ctx context.Context, in client.CloneJoin) (*client.CloneJoined, error) {
	now, hash := time.Now(), hashSecret(in.Secret)
	in.Secret = ""
	for range 3 {
		var i *invitation
		err := s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
			i, err = findInvitation(ctx, tx, `hash = $1`, hash)
			return err
		})
		switch {
		case err != nil:
			return nil, err
		case i == nil, i.usedBy == "" && now.After(i.expires):
			return nil, noToken()
		}
		shown, err := readShown(&in)
		if err != nil {
			return nil, err
		}
		if i.usedBy != "" {
			return s.joinedBefore(ctx, i, &in, shown, now)
		}
		if err := s.mayJoin(ctx, i, &in, shown, now); err != nil {
			return nil, err
		}
		r, err := s.register(ctx, i, &in, shown, now)
		if !errors.Is(err, errUsed) {
			if err != nil {
				return nil, fmt.Errorf("join as node %s: %w", in.Name, err)
			}
			return r.joined(), nil
		}
	}
	return nil, fault.New(fault.Unavailable, "the invitation is used at the same time; try again")
}

// shown is what a machine's requests prove that it has.
type shown struct {
	spki        []byte // of the TLS key
	fingerprint string
}

func readShown(in *client.CloneJoin) (*shown, error) {
	request, err := cert.CSRLimits{}.ParsePEM([]byte(in.CSR))
	if err != nil {
		return nil, fmt.Errorf("/csr: %w", err)
	}
	var databaseSPKI []byte
	if in.DatabaseCSR != "" {
		request, err := cert.CSRLimits{}.ParsePEM([]byte(in.DatabaseCSR))
		if err != nil {
			return nil, fmt.Errorf("/database_csr: %w", err)
		}
		databaseSPKI = request.SPKI
	}
	if bytes.Equal(request.SPKI, databaseSPKI) {
		return nil, fault.New(fault.Invalid, "one key is given for the TLS identity and for the database; each has its own").At("/database_csr")
	}
	return &shown{spki: request.SPKI, fingerprint: client.CloneFingerprint(*in, request.SPKI, databaseSPKI)}, nil
}

// joinedBefore answers for an invitation that was used.
func (s *Service) joinedBefore(ctx context.Context, i *invitation, in *client.CloneJoin, m *shown, now time.Time) (*client.CloneJoined, error) {
	same := func(r *row) bool {
		return r != nil && r.joinedBy == i.id && r.name == in.Name && r.publicKey == in.PublicKey && bytes.Equal(r.spki, m.spki)
	}
	var r *row
	err := s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		r, err = find(ctx, tx, `name = $1`, i.usedBy)
		return err
	})
	switch { // what promises nothing, and is asked every other second, writes nothing
	case err != nil:
		return nil, err
	case same(r) && (r.joined().State != client.CloneActive || s.confirmed(r.name, false)):
		return r.joined(), nil
	case !same(r) && i.refused >= auditedRefusals:
		return nil, noToken()
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if r, err = find(ctx, tx, `name = $1`, i.usedBy); err != nil {
			return err
		}
		if same(r) {
			// What is found to be done is acknowledged behind a commit of its own: the first one's outcome may be unknown.
			_, err = tx.Exec(ctx, `UPDATE node_invitation SET used_at = used_at WHERE id = $1`, i.id)
			return err
		}
		r = nil
		n, err := tx.Exec(ctx, `UPDATE node_invitation SET refused = refused + 1 WHERE id = $1 AND refused < $2`, i.id, int64(auditedRefusals))
		if err != nil || n == 0 {
			return err
		}
		return s.audit(ctx, tx, "anonymous", "clone.join-refused", i.usedBy, map[string]any{
			"invitation": i.id, "fingerprint": m.fingerprint,
		}, now)
	})
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, noToken()
	}
	if r.joined().State == client.CloneActive {
		s.confirmed(r.name, true)
	}
	return r.joined(), nil
}

// confirmed reports whether this process has seen a commit behind which a node is approved, or notes it: then whoever asks on, with a
// token that was used, has nothing written any more.
func (s *Service) confirmed(node string, note bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if note && s.approved == nil {
		s.approved = map[string]bool{}
	}
	if note && len(s.approved) < MaxNodes {
		s.approved[node] = true
	}
	return s.approved[node]
}

// joined is how far a node has come. It is active when the approval has gone to its end, and not before.
func (r *row) joined() *client.CloneJoined {
	out := client.CloneJoined{State: client.CloneWaiting, Fingerprint: r.fingerprint, Subsystems: r.subsystems}
	switch {
	case r.state == client.CloneGone || r.state == client.CloneLeaving:
		out.State = client.CloneGone
	case r.state == client.CloneActive && r.answer.State == client.CloneActive:
		out = r.answer
		out.Fingerprint, out.Subsystems = r.fingerprint, r.subsystems
	}
	return &out
}

// register writes the node, and that the invitation is used.
func (s *Service) register(ctx context.Context, i *invitation, in *client.CloneJoin, m *shown, now time.Time) (*row, error) {
	r := &row{
		name: in.Name, state: client.CloneWaiting, subsystems: strings.Split(i.subsystems, ","), address: in.Address, publicKey: in.PublicKey,
		fingerprint: m.fingerprint, spki: m.spki, request: *in, joinedBy: i.id, created: now,
	}
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, `UPDATE node_invitation SET used_by = $1, used_at = $2 WHERE id = $3 AND used_by = '' AND expires_at >= $2`,
			r.name, db.Micros(now), i.id)
		if err != nil {
			return err
		}
		if n == 0 {
			return errUsed
		}
		if err := s.nameFree(ctx, tx, r.name); err != nil {
			return err
		}
		// One that was refused before it was ever approved leaves its name free.
		if _, err := tx.Exec(ctx, `DELETE FROM node WHERE name = $1 AND state = 'gone' AND approved_at = 0`, r.name); err != nil {
			return err
		}
		if err := r.insert(ctx, tx); err != nil {
			return err
		}
		return s.audit(ctx, tx, "anonymous", "clone.join", r.name, map[string]any{
			"invitation": i.id, "fingerprint": r.fingerprint, "address": r.address, "names": in.Names, "subsystems": i.subsystems, "release": in.Release,
		}, now)
	})
	return r, err
}

// nameFree refuses a name that any node has had: it is in the audit, in certificates, and in leases.
func (s *Service) nameFree(ctx context.Context, tx *db.Tx, name string) error {
	other, err := find(ctx, tx, `name = $1 AND (state <> 'gone' OR approved_at <> 0)`, name)
	if err != nil {
		return err
	}
	var n int64
	err = tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM audit_head WHERE node = $1) + (SELECT COUNT(*) FROM key_recipient WHERE id = $1)
		+ (SELECT COUNT(*) FROM leases WHERE holder = $1)`, name).Scan(&n)
	if err != nil {
		return fmt.Errorf("see whether the name %s is free: %w", name, err)
	}
	if other == nil && n == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "a node named %s is or was part of this authority, and no name is given twice", name).At("/name").
		WithHint("choose another with --name")
}

// maxSkew is how far the clock of a machine that joins may be off. What it signs is dated by it.
const maxSkew = time.Minute

// mayJoin says all that is wrong with what a new node says of itself, before anything is made.
func (s *Service) mayJoin(ctx context.Context, i *invitation, in *client.CloneJoin, m *shown, now time.Time) error {
	if err := checkName(in.Name); err != nil {
		return err
	}
	if skew := now.Sub(in.Time); skew > maxSkew || skew < -maxSkew {
		return fault.New(fault.Conflict, "the clock of this machine says %s and the authority's says %s: %s apart, and at most %s passes",
			in.Time.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), skew.Abs().Round(time.Second), maxSkew).At("/time").
			WithHint("set the clock, by NTP at best, and join again")
	}
	if err := s.sameRelease(ctx, in, strings.Split(i.subsystems, ",")); err != nil {
		return err
	}
	if err := checkAddress(in.Address); err != nil {
		return err
	}
	if _, err := age.ParseX25519Recipient(in.PublicKey); err != nil {
		return fault.New(fault.Invalid, "public key %.80q is not an age X25519 recipient (age1…)", in.PublicKey).At("/public_key")
	}
	if len(in.Release) > 100 || strings.ContainsFunc(in.Release, func(c rune) bool { return c < ' ' || c > '~' }) {
		return fault.New(fault.Invalid, "release %.40q is not at most 100 printable ASCII characters", in.Release).At("/release")
	}
	names, err := serverNames(in.Address, in.Names)
	if err != nil {
		return err
	}
	if err := s.namesOfOthers(ctx, strings.Split(i.subsystems, ","), names); err != nil {
		return err
	}
	return s.Identity.CheckNode(ctx, identity.NodeOrder{Node: in.Name, SPKI: m.spki, Names: names})
}

// reserved are words that would be taken for something else: in the API's paths, among recipients, and among those in whose name
// the authority acts.
var reserved = []string{"invitations", "join", "identity", "recovery", "system", "rollout", "bench", "test", "reader"} // never changed

// maxName leaves room for what the name of a node's login at PostgreSQL begins with: that has 63 octets at most.
const maxName = 54

func checkName(name string) error {
	good := name != "" && len(name) <= maxName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" &&
		!strings.HasPrefix(name, "-") && !strings.HasSuffix(name, "-")
	switch {
	case !good:
		return fault.New(fault.Invalid, "node name %.80q is not 1 to %d of a-z, 0-9 and hyphens, with no hyphen at either end", access.Redact(name), maxName).At("/name")
	case slices.Contains(reserved, name) || strings.HasPrefix(name, "recovery-"):
		return fault.New(fault.Invalid, "%s is a word of the authority's own, and no node's name", name).At("/name").WithHint("choose another with --name")
	}
	return nil
}

// sameRelease refuses a program that cannot live with the database as it is, or that would change it for the nodes there are; also one that
// cannot live with the login that a node gets which does not issue.
func (s *Service) sameRelease(ctx context.Context, in *client.CloneJoin, subsystems []string) error {
	have, from, err := schema.Range(ctx, s.DB)
	if err != nil {
		return err
	}
	if !slices.Contains(subsystems, string(keys.SubsystemCA)) {
		from = max(from, limitedSince)
	}
	switch {
	case in.Schema < from:
		return fault.New(fault.Conflict, "this program (release %.40q) knows the schema up to %d, and the database needs one that knows %d to %d", in.Release,
			in.Schema, from, have).At("/schema").WithHint("install the release that the nodes run (chancery clone list shows it), and join again")
	case in.Schema > have:
		return fault.New(fault.Conflict, "this program (release %.40q) knows the schema up to %d, and the database has %d: it would change the database under "+
			"the nodes there are; one that knows %d to %d passes", in.Release, in.Schema, have, from, have).At("/schema").
			WithHint("upgrade the nodes there are first, or install the release that they run")
	}
	return nil
}

func checkAddress(text string) error {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "address %.200q %s; write https://HOST:PORT, where clients reach this node", access.Redact(text), why).At("/address")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return bad("is no URL")
	case len(text) > 300 || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return bad("has another form")
	case u.Port() != "" && !isPort(u.Port()):
		return bad("has a port that is none")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return bad("names an address that nobody reaches")
		}
		return nil
	}
	if _, err := cert.ParseGeneralName("dns:" + u.Hostname()); err != nil || strings.Contains(u.Hostname(), "*") {
		return bad("has no host name")
	}
	return nil
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// serverNames are the names of a node's certificate: the host of its address, what else it asks for, and this machine.
func serverNames(address string, more []string) ([]string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	var names []string
	for i, text := range slices.Concat([]string{cert.HostName(u.Hostname())}, more, []string{"dns:localhost", "ip:127.0.0.1", "ip:::1"}) {
		name, err := cert.ParseGeneralName(text)
		if err == nil && (name.Kind != cert.DNS && name.Kind != cert.IPAddress || strings.Contains(name.Value, "*")) {
			err = fault.New(fault.Invalid, "%.100q is neither dns:NAME nor ip:ADDRESS", text)
		}
		if err != nil {
			return nil, fmt.Errorf("/names/%d: %w", max(i-1, 0), err)
		}
		if !slices.Contains(names, name.String()) {
			names = append(names, name.String())
		}
	}
	return names, nil
}

// namesOfOthers refuses a node without the ca subsystem the names of nodes that have it, or wait for it, and the authority's: with them
// it could pose as one, and be sent tokens. A node with the ca subsystem could give itself any name.
func (s *Service) namesOfOthers(ctx context.Context, subsystems, names []string) error {
	if slices.Contains(subsystems, string(keys.SubsystemCA)) {
		return nil
	}
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return err
	}
	whose := map[string]string{hostOf(set.Address): "the authority"} // by host
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) error {
		all, err := nodes(ctx, tx, "", MaxNodes)
		for _, r := range all {
			if r.state == client.CloneGone || !r.runs(keys.SubsystemCA) {
				continue
			}
			whose[hostOf(r.address)] = "node " + r.name
			for _, name := range append([]string{"dns:" + hostOf(r.request.Address)}, r.request.Names...) {
				_, host, _ := strings.Cut(name, ":")
				whose[host] = "node " + r.name
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	for host, who := range whose {
		if host == "" || isLoopback(host) {
			continue
		}
		for _, name := range names {
			if _, value, _ := strings.Cut(name, ":"); sameHost(value, host) {
				return fault.New(fault.Denied, "%s is where clients reach %s, and a node that runs %s only gets no certificate for it", value, who,
					strings.Join(subsystems, ",")).At("/names").WithHint("give the node an address of its own")
			}
		}
	}
	return nil
}

// hostOf is the host of an address; empty where it has none.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// sameHost reports whether two texts name one host, however an IP address is written.
func sameHost(a, b string) bool {
	one, err := netip.ParseAddr(a)
	if err != nil {
		return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
	}
	other, err := netip.ParseAddr(b)
	return err == nil && one.Unmap().WithZone("") == other.Unmap().WithZone("")
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
