package clone

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/settings"
)

// errDecided says that somebody else approved or refused the node between the look and the transaction.
var errDecided = errors.New("the node was decided on meanwhile")

// Approve makes a node that waits one of the authority's, if its keys have the fingerprint that the administrator was shown on that
// machine. In one transaction it becomes active and a key recipient, which the next signed list names, and gets its identity. Then
// the keys that it is entitled to are wrapped to it, and it gets its login. Whatever is cut short is taken up by approving again, or
// by the next node that looks: see Finish.
func (s *Service) Approve(ctx context.Context, by access.Principal, name string, in client.CloneApproval) (*client.Clone, error) {
	if err := by.May(access.ManageNodes); err != nil {
		return nil, err
	}
	if err := s.needsCA(ctx); err != nil {
		return nil, err
	}
	const tries = 5
	for try := 1; ; try++ {
		r, err := s.read(ctx, name)
		if err != nil {
			return nil, err
		}
		if shown := client.PlainFingerprint(in.Fingerprint); shown != r.fingerprint {
			return nil, fault.New(fault.Conflict, "node %s asked to join with another fingerprint than %.80s: its own begins with %.8s", r.name, shown, r.fingerprint).At("/fingerprint").
				WithHint("compare it with what the new machine shows; if that shows the one given here, another machine took its place: chancery clone remove %s", r.name)
		}
		switch r.state {
		case client.CloneActive:
			if err = s.confirm(ctx, r); err != nil {
				break
			}
			err := s.complete(ctx, by, r)
			if err == nil {
				err = s.hasLogin(ctx, r)
			}
			if err != nil {
				return nil, s.incomplete(ctx, r, err)
			}
			return s.Show(ctx, by, r.name)
		case client.CloneWaiting:
			if err = s.stillJoins(ctx, r); err == nil {
				err = s.goodKeys(ctx)
			}
			if err == nil {
				err = s.admit(ctx, by, r, time.Now())
			}
		default:
			return nil, fault.New(fault.Conflict, "node %s is %s", r.name, r.state).WithHint("the machine joins anew, with another name and another token")
		}
		if again := errors.Is(err, errDecided) || errors.Is(err, keys.ErrListMoved); err != nil && (!again || try == tries) {
			if again {
				err = fault.New(fault.Unavailable, "the nodes change all the time; try again: %w", err)
			}
			return nil, fmt.Errorf("approve node %s: %w", r.name, err)
		}
	}
}

// stillJoins refuses a node that has waited since before the database was as it is, with a program that cannot live with that.
func (s *Service) stillJoins(ctx context.Context, r *row) error {
	if err := s.sameRelease(ctx, &r.request, r.subsystems); err != nil {
		return fmt.Errorf("it asked to join with another release, so refuse it (chancery clone remove %s): %w", r.name, err)
	}
	return nil
}

// incomplete says of an approved node why it does not have all it needs: also that another has taken it out meanwhile, so that it never will.
func (s *Service) incomplete(ctx context.Context, r *row, err error) error {
	if now, looked := s.read(ctx, r.name); looked == nil && now.state != client.CloneActive {
		ended := fault.New(fault.Conflict, "node %s is %s since it was approved", r.name, now.state).WithHint("the machine joins anew, with another name and another token")
		ended.Err = err
		return ended
	}
	return fmt.Errorf("node %s is approved, and does not have all it needs yet: %w", r.name, err)
}

// confirm acknowledges what was found to be done behind a commit of its own: the first one's outcome may be unknown.
func (s *Service) confirm(ctx context.Context, r *row) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, `UPDATE node SET state = state WHERE name = $1 AND state = $2`, r.name, r.state)
		if err == nil && n == 0 {
			err = errDecided
		}
		return err
	})
}

// admit is the one transaction.
func (s *Service) admit(ctx context.Context, by access.Principal, r *row, now time.Time) error {
	list, err := s.Keys.SignList(ctx, []keys.Recipient{r.recipient(now)})
	if err != nil {
		return err
	}
	names, err := serverNames(r.address, r.request.Names)
	if err != nil {
		return err
	}
	if err := s.namesOfOthers(ctx, r.subsystems, names); err != nil {
		return err
	}
	p := access.Principal{ID: db.NewID(), Name: identity.NodePrincipal(r.name), Kind: access.KindNode, Created: db.FromMicros(db.Micros(now))}
	order := identity.NodeOrder{
		Principal: p.ID, Node: r.name, SPKI: r.spki, Names: names, Key: "clone " + r.name + " " + r.fingerprint,
	}
	_, err = s.Identity.IssueNode(ctx, by, order, func(ctx context.Context, tx *db.Tx, issued *ca.Certificate) error {
		current, err := named(ctx, tx, r.name)
		if err != nil {
			return err
		}
		if current.state != client.CloneWaiting || current.fingerprint != r.fingerprint {
			return errDecided
		}
		set, err := settings.Within(ctx, tx)
		if err != nil {
			return err
		}
		if err := durable(set); err != nil {
			return err
		}
		if err := s.Access.InsertPrincipal(ctx, tx, p, by.Actor()); err != nil {
			return err
		}
		if err := s.Keys.AddRecipient(ctx, tx, r.recipient(now), by.Actor(), now); err != nil {
			return err
		}
		if err := s.Keys.PutList(ctx, tx, list, by.Actor(), now); err != nil {
			return err
		}
		if err := db.LowerFence(ctx, tx, r.name); err != nil {
			return err
		}
		answer, err := encode(client.CloneJoined{State: client.CloneWaiting, Certificate: encodePath(identity.Path(issued)), RecipientList: list.Version()})
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE node SET state = $1, principal = $2, approved_by = $3, approved_at = $4, answer = $5 WHERE name = $6`,
			client.CloneActive, p.ID, by.Actor(), db.Micros(now), answer, r.name)
		if err != nil {
			return err
		}
		return s.audit(ctx, tx, by.Actor(), "clone.approve", r.name, map[string]any{
			"fingerprint": r.fingerprint, "subsystems": r.subsystems, "address": r.address, "names": names, "recipient_list": list.Version(),
		}, now)
	})
	s.Access.Forget()
	return err
}

// durable refuses a second node while commits wait for no standby: a failover would lose what was acknowledged.
func durable(set *settings.Settings) error {
	if set.Durability != settings.Local {
		return nil
	}
	return fault.New(fault.Conflict, "durability is local: a commit waits for no standby, so with more nodes than one a failover would lose what was acknowledged").
		WithHint("chancery settings set durability=synchronous, where PostgreSQL has a synchronous standby; durability=provider, where the operator vouches for it")
}

// GuardSettings is durable's other half, for settings.Store.Guard: durability stays what it is while there is more than one node.
func (s *Service) GuardSettings(ctx context.Context, tx *db.Tx, next *settings.Settings) error {
	if next.Durability != settings.Local {
		return nil
	}
	var others int64
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM node WHERE name <> $1 AND state IN ('active', 'leaving')`, s.node).Scan(&others)
	if err != nil || others == 0 {
		return err
	}
	return fault.New(fault.Conflict, "durability cannot be local while the authority has %d nodes: a failover of the database would lose what was acknowledged", others+1).
		At("durability").WithHint("synchronous or provider would pass; chancery clone list shows the nodes")
}

// complete does what an approval does after its transaction. It may be done again, by any node with the ca subsystem.
func (s *Service) complete(ctx context.Context, by access.Principal, r *row) error {
	// A key that this node cannot open keeps the new one from nothing else: another node may have it, or the key is of no use to any.
	_, wrapping := s.Keys.Rewrap(ctx, r.name, by.Actor())
	if r.answer.State == client.CloneActive || r.joinedBy == "" {
		return wrapping
	}
	return errors.Join(wrapping, s.giveAnswer(ctx, by, r))
}

// giveAnswer gives an approved node its login, and writes what it is told.
func (s *Service) giveAnswer(ctx context.Context, by access.Principal, r *row) error {
	answer := r.answer
	answer.State = client.CloneActive
	login, err := s.login(ctx, by, r.name, r.request.DatabaseCSR)
	if err != nil {
		return err
	}
	answer.DatabaseRole, answer.DatabaseCertificate, answer.DatabaseRoots = login.Role, login.Certificate, login.Roots
	if answer.AuditKeys, err = s.auditKeys(ctx); err != nil {
		return err
	}
	text, err := encode(answer)
	if err != nil {
		return err
	}
	return s.remember(ctx, r.name, login, `answer = $3`, text)
}

// errNoneNow says that the node ended that was given a login.
var errNoneNow = errors.New("the node of the login is none any more")

// remember writes that a node has a login, so that the login ends with the node, and what else is given. Where the node ended while it was
// made, it ends here; where that fails, or this process ends before, Finish finds it.
func (s *Service) remember(ctx context.Context, name string, login Login, and string, args ...any) error {
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, `UPDATE node SET database_role = $1, `+and+` WHERE name = $2 AND state = 'active'`, append([]any{login.Role, name}, args...)...)
		if err == nil && n == 0 {
			err = &fault.Error{Kind: fault.Denied, Err: errNoneNow, Message: "node " + name + " is none any more"}
		}
		return err
	})
	// Other refusals are of this node: whether the other one is there was not asked.
	if !errors.Is(err, errNoneNow) || login.Role == "" || s.CloseLogin == nil {
		return err
	}
	if end := s.CloseLogin(ctx, login.Role); end != nil {
		s.Logger.ErrorContext(ctx, "the login of a node that ended while it was made is still there", "node", name, "role", login.Role, "error", end)
	}
	return err
}

func (s *Service) login(ctx context.Context, by access.Principal, node, csr string) (Login, error) {
	if csr == "" || s.OpenLogin == nil {
		return Login{}, nil
	}
	login, err := s.OpenLogin(ctx, by, node, csr)
	if err != nil {
		return Login{}, fmt.Errorf("give node %s its login at the database: %w", node, err)
	}
	return login, nil
}

// auditKeys are the public keys of checkpoints and of lists of recipients, in PEM.
func (s *Service) auditKeys(ctx context.Context) (string, error) {
	found, err := s.Keys.Find(ctx, keys.Audit, "")
	if err != nil {
		return "", err
	}
	text := ""
	for _, k := range found {
		text += string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.SPKI}))
	}
	return text, nil
}

func encodePath(path [][]byte) []string {
	texts := make([]string, len(path))
	for i, der := range path {
		texts[i] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return texts
}

// RenewIdentity gives the calling node new certificates for new keys: a node without the ca subsystem cannot issue its own. Where its login was
// taken away it still gets the TLS certificate that it asked for with it, and none of the login: else its TLS would run out as well.
func (s *Service) RenewIdentity(ctx context.Context, by access.Principal, in client.CloneIdentity, key string) (*client.CloneJoined, error) {
	if err := s.needsCA(ctx); err != nil {
		return nil, err
	}
	r, err := s.self(ctx, by)
	if err != nil {
		return nil, err
	}
	answer := &client.CloneJoined{State: r.state, Fingerprint: r.fingerprint, Subsystems: r.subsystems, RecipientList: r.answer.RecipientList}
	switch {
	case in.CSR != "":
		if answer.Certificate, err = s.renewTLS(ctx, by, r, &in, key); err != nil {
			return nil, err
		}
	case in.DatabaseCSR == "":
		return nil, fault.New(fault.Invalid, "nothing is asked for: csr, database_csr or both would pass").At("/csr")
	}
	login, err := s.keepLogin(ctx, by, r.name, in.DatabaseCSR)
	switch {
	case errors.Is(err, errTookAway) && len(answer.Certificate) > 0:
		s.Logger.ErrorContext(ctx, "a node gets its next TLS certificate, and no login at the database", "node", r.name, "error", err)
	case err != nil:
		return nil, err
	}
	answer.DatabaseRole, answer.DatabaseCertificate, answer.DatabaseRoots = login.Role, login.Certificate, login.Roots
	answer.AuditKeys, err = s.auditKeys(ctx)
	return answer, err
}

// renewTLS certifies the next key of a node's TLS identity.
func (s *Service) renewTLS(ctx context.Context, by access.Principal, r *row, in *client.CloneIdentity, key string) ([]string, error) {
	request, err := cert.CSRLimits{}.ParsePEM([]byte(in.CSR))
	if err != nil {
		return nil, fmt.Errorf("/csr: %w", err)
	}
	names, err := r.renewedNames(in.Names)
	if err != nil {
		return nil, err
	}
	if err := s.namesOfOthers(ctx, r.subsystems, names); err != nil {
		return nil, err
	}
	if key != "" {
		key = "clone " + r.name + " " + key
	}
	order := identity.NodeOrder{Principal: by.ID, Node: r.name, SPKI: request.SPKI, Names: names, Key: key}
	if err := s.Identity.CheckNode(ctx, order); err != nil {
		return nil, err
	}
	issued, err := s.Identity.IssueNode(ctx, by, order, func(ctx context.Context, tx *db.Tx, _ *ca.Certificate) error {
		current, err := named(ctx, tx, r.name)
		if err == nil && current.state != client.CloneActive {
			err = goneError(current)
		}
		return err
	})
	s.Access.Forget()
	if err != nil {
		return nil, err
	}
	return encodePath(identity.Path(issued)), nil
}

// renewedNames are the names of a node's next certificate. Without the ca subsystem it has those that were approved or fewer, whatever it
// has since said of itself in the database: nobody has looked at more.
func (r *row) renewedNames(more []string) ([]string, error) {
	address := r.address
	if r.request.Address != "" && !r.runs(keys.SubsystemCA) {
		address = r.request.Address
	}
	approved, err := serverNames(address, r.request.Names)
	if err != nil || len(more) == 0 {
		return approved, err
	}
	names, err := serverNames(address, more)
	if err != nil || r.runs(keys.SubsystemCA) {
		return names, err
	}
	for _, name := range names {
		if !slices.Contains(approved, name) {
			return nil, fault.New(fault.Denied, "node %s was approved with the names %s, and asks for %.100s as well", r.name, strings.Join(approved, ", "), name).
				At("/names").WithHint("take it out of tls_names in the node's node.yaml; with another name the machine joins anew")
		}
	}
	return names, nil
}

// OwnLogin certifies the next key of this node's login at the database, and makes the login where it has none yet. The node has the ca
// subsystem; others ask one that has, by RenewIdentity.
func (s *Service) OwnLogin(ctx context.Context, csr string) (Login, error) {
	return s.keepLogin(ctx, access.System(s.node), s.node, csr)
}

// keepLogin gives a node a login, and remembers it, so that it ends with the node.
func (s *Service) keepLogin(ctx context.Context, by access.Principal, name, csr string) (Login, error) {
	if csr == "" || s.OpenLogin == nil {
		return Login{}, nil
	}
	r, err := s.read(ctx, name)
	if err != nil {
		return Login{}, err
	}
	before, err := s.roleOf(ctx, r)
	if err != nil {
		return Login{}, err
	}
	login, err := s.login(ctx, by, name, csr)
	if err != nil || login.Role == "" {
		return login, err
	}
	if err := s.sameRole(ctx, r, login.Role, before); err != nil {
		return Login{}, err
	}
	if err := s.remember(ctx, name, login, `state = state`); err != nil {
		return Login{}, err
	}
	return login, nil
}

// self is the node that calls.
func (s *Service) self(ctx context.Context, by access.Principal) (r *row, err error) {
	if by.Kind != access.KindNode || by.ID == "" {
		return nil, fault.New(fault.Denied, "%s is no node", by.Actor())
	}
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) error {
		r, err = find(ctx, tx, `principal = $1`, by.ID)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, fault.New(fault.Denied, "%s is no node here any more", by.Actor())
	case r.state != client.CloneActive:
		return nil, goneError(r)
	}
	return r, nil
}
