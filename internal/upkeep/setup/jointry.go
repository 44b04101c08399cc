package setup

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/store/token"
	"chancery/internal/upkeep/datadir"
)

// pkcs11 is what node.yaml says of the tokens that the node reaches.
func (o *JoinOptions) pkcs11() (p datadir.PKCS11, err error) {
	p.Helper = o.TokenHelper
	for _, uri := range o.Tokens {
		u, err := token.ParseToken(uri)
		if err != nil {
			return p, err
		}
		t, err := tokenOf(u)
		if err != nil {
			return p, err
		}
		if t.PINFile != "" {
			if t.PINFile, err = filepath.Abs(t.PINFile); err != nil {
				return p, err
			}
		}
		p.Tokens = append(p.Tokens, t)
	}
	if o.ReplicaOf != "" && len(p.Tokens) != 1 {
		return p, fault.New(fault.Invalid, "one token is a copy of the one with the serial number %q, and %d are named", o.ReplicaOf, len(p.Tokens))
	}
	if o.ReplicaOf != "" {
		p.Tokens[0].ReplicaOf = o.ReplicaOf
	}
	return p, nil
}

// lookPatience is how long each server of the database may take to answer before an approval is asked for.
const lookPatience = 5 * time.Second

// lookAhead refuses a database that is seen to be the wrong one before anybody is asked to approve: standbys alone, no authority, or
// one with another root of identities. Where the login is what the approval brings, or a server does not answer, nothing is known, and the
// approved node looks.
func (j *joining) lookAhead(ctx context.Context, root string) error {
	url, _, err := j.config.DatabaseURLs(j.at)
	if err != nil || strings.HasPrefix(url, "sqlite:") {
		return err
	}
	servers, err := db.Survey(ctx, url, lookPatience)
	if err != nil {
		return err
	}
	writes := false
	for _, s := range servers {
		if s.Err != nil {
			return nil
		}
		writes = writes || !s.Standby
	}
	if !writes {
		return fault.New(fault.Invalid, "%s leads to a standby alone, which takes no writes; nobody was asked to approve", j.config.DatabaseFile).
			WithHint("name every server in it, and let the primary be found: postgres://DB1,DB2,DB3/NAME?target_session_attrs=read-write; " +
				"--database-read-file is for this machine's standby")
	}
	d, err := db.Open(ctx, db.Options{URL: url, Node: j.config.Name, Logger: slog.New(slog.DiscardHandler), Beside: true})
	if err != nil {
		return nil
	}
	return closing(d, j.lookInto(ctx, d, root))
}

func (j *joining) lookInto(ctx context.Context, d *db.DB, root string) error {
	has, err := schema.Version(ctx, d)
	if db.IsNoTable(err) || err == nil && has == 0 {
		return j.noAuthority()
	}
	if err != nil || has != schema.Newest() {
		return nil
	}
	s, err := Assemble(d, j.config.Name, j.node, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	roots, err := s.Identity.RootCertificates(ctx)
	if err != nil {
		return nil
	}
	if len(roots) == 0 {
		return j.noAuthority()
	}
	if hasRoot(roots, root) {
		return nil
	}
	return fault.New(fault.Invalid, "the database of %s is another authority's: it has not the root of identities that %s shows; nobody was asked to approve",
		j.config.DatabaseFile, j.token.Address)
}

// hasRoot reports whether the root in PEM is one of the roots.
func hasRoot(roots []*x509.Certificate, root string) bool {
	return slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return string(keyfile.EncodeCertificates(r)) == root })
}

func (j *joining) noAuthority() error {
	return fault.New(fault.Invalid, "the database of %s holds no authority", j.config.DatabaseFile)
}

// tryDatabase opens the database as the node will, and wants it to be this authority's and to hold keys for this node.
func (j *joining) tryDatabase(ctx context.Context, joined *client.CloneJoined) error {
	s, err := Open(ctx, j.at, &j.config, j.Logger)
	if err != nil {
		return fmt.Errorf("open the database as this node will: %w", err)
	}
	err = j.try(ctx, s, joined)
	_ = s.Close()
	return err
}

func (j *joining) try(ctx context.Context, s *Services, joined *client.CloneJoined) error {
	has, err := schema.Version(ctx, s.DB)
	if db.IsNoTable(err) || err == nil && has == 0 {
		return j.noAuthority()
	}
	if err != nil {
		return err
	}
	list, err := s.Keys.NewestList(ctx)
	if err != nil {
		return err
	}
	if list != nil && list.Version >= joined.RecipientList && slices.ContainsFunc(list.Recipients, func(r keys.Listed) bool {
		return r.ID == j.config.Name && r.PublicKey == j.node.Public()
	}) {
		roots, err := s.Identity.RootCertificates(ctx)
		if err != nil {
			return err
		}
		if !hasRoot(roots, j.root) {
			return fault.New(fault.Conflict, "the database of %s has not the root of identities that %s shows, SHA-256 %x: its is %s",
				j.config.DatabaseFile, j.token.Address, j.token.Fingerprint, prints(roots))
		}
		return j.tryKeys(ctx, s)
	}
	return fault.New(fault.Conflict, "the database of %s does not know node %s with its key: it is another authority's, or a copy from before the node "+
		"was approved", j.config.DatabaseFile, j.config.Name)
}

// keysArrive is how long the wraps may take that were made before the approval was told: where this node reads, they may come later.
const keysArrive = 5 * time.Second

// tryKeys opens every key that the node is entitled to, and holds that of each issuer that is not retired against its certificate, so that a
// node that could not sign is never made.
func (j *joining) tryKeys(ctx context.Context, s *Services) error {
	for end := time.Now().Add(keysArrive); ; {
		found, err := s.Keys.Openable(ctx)
		if err != nil {
			return err
		}
		// A node may do without a token that was not named: it says what it lacks when it starts.
		why := slices.DeleteFunc(found.Why, func(one string) bool { return slices.Contains(found.InTokens, one) })
		problems, _, err := s.CA.KeyProblems(ctx)
		if err != nil {
			return err
		}
		for _, p := range problems {
			if p.State != ca.IssuerRetired { // it may be lost for good; doctor names it
				why = append(why, p.Message)
			}
		}
		late := len(why) > 0 // what is in a token does not arrive later
		inTokens, err := j.tryTokens(ctx, s)
		if err != nil {
			return err
		}
		if why = append(why, inTokens...); len(why) == 0 {
			return nil
		}
		if !late || time.Now().After(end) {
			return fault.New(fault.Conflict, "node %s was approved, and could not sign: of the %d keys that it is entitled to it opens %d: %s", j.config.Name,
				found.Entitled, found.Open, strings.Join(why, "; ")).
				WithHint("repair it on a node that runs (chancery doctor there says what is wrong), then give the same command again; nothing was made but %s", string(j.at))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// tokenPatience is how long the keys in tokens may take to sign.
const tokenPatience = 30 * time.Second

// tryTokens has each key of the authority sign that lies in a token which was named, and says which does not, of which token nothing is wanted,
// and where none of those keys is the one that was named with the token.
func (j *joining) tryTokens(ctx context.Context, s *Services) (why []string, err error) {
	if len(j.config.PKCS11.Tokens) == 0 {
		return nil, nil
	}
	all, err := s.Keys.InTokens(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, tokenPatience)
	defer cancel()
	for i, t := range j.config.PKCS11.Tokens {
		named, err := token.ParseToken(j.Tokens[i])
		if err != nil {
			return nil, err
		}
		here, found := 0, false
		var others []string
		for _, k := range all {
			u, err := token.Parse(k.Token)
			if err != nil {
				return nil, err
			}
			if !holds(t, u) {
				continue
			}
			here, found, others = here+1, found || named.Finds(u), append(others, u.String())
			if _, err := s.Keys.Reach(ctx, k); err != nil {
				why = append(why, fmt.Sprintf("the %s key of %s: %v", k.Purpose, k.Owner, err))
			}
		}
		if here == 0 {
			why = append(why, fmt.Sprintf("of the %d keys in tokens that this node is entitled to none lies in the token %q that was named", len(all), t.Token+t.Serial))
		} else if !found {
			named.PINSource, named.ModuleName, named.ModulePath = "", "", ""
			why = append(why, fmt.Sprintf("the authority has no key %s that was named; in that token it has %s: name one of these, or the token alone", named,
				strings.Join(others, ", ")))
		}
	}
	return why, nil
}

// holds reports whether a key may lie in the token.
func holds(t datadir.Token, u *token.URI) bool {
	serial := t.Serial
	if t.ReplicaOf != "" {
		serial = t.ReplicaOf
	}
	return (t.Token == "" || u.Token == "" || t.Token == u.Token || t.ReplicaOf != "") && (serial == "" || u.Serial == "" || serial == u.Serial)
}
