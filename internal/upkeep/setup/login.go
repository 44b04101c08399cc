package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

const (
	// DatabasePool is the pool whose certificates nodes log in with at PostgreSQL, and whose hosts are its servers.
	DatabasePool = ca.DatabasePool
	// loginProfile is for what logs in: a TLS client.
	loginProfile = "client"
)

// LoginRole is the name of a node's login. Letters are small, since PostgreSQL folds what is not quoted, and pg_hba.conf is written by
// hand.
func LoginRole(node string) string { return ca.LoginPrefix + strings.ToLower(node) }

// openLogin gives a node its own login at PostgreSQL and certifies its key for it. Whoever calls has been let in by package clone.
func (s *Services) openLogin(ctx context.Context, node, csr string) (clone.Login, error) {
	if s.DB.Dialect() != db.Postgres {
		return clone.Login{}, nil
	}
	if _, err := s.Pools.Pool(ctx, DatabasePool); fault.Is(err, fault.NotFound) {
		return clone.Login{}, nil
	} else if err != nil {
		return clone.Login{}, err
	}
	role := LoginRole(node)
	limited, err := s.limited(ctx, node)
	if err != nil {
		return clone.Login{}, err
	}
	if err := s.DB.AddLogin(ctx, role, limited); err != nil {
		return clone.Login{}, err
	}
	sum := sha256.Sum256([]byte(csr))
	// An administrator has approved the node, and with it its login; a node that renews has no role that issues.
	by := access.Principal{ID: loginRequester(role), Name: s.Keys.Self(), Kind: access.KindNode, Roles: []access.Role{access.Admin}}
	issued, err := s.CA.IssueLogin(ctx, by, role, ca.Order{
		Profile: loginProfile, CSR: []byte(csr),
		IdempotencyKey: "login " + node + " " + hex.EncodeToString(sum[:]),
	})
	if err != nil {
		return clone.Login{}, fmt.Errorf("certify the login %s: %w", role, err)
	}
	login := clone.Login{Role: role}
	for _, der := range identity.Path(issued) {
		login.Certificate = append(login.Certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	login.Roots, err = s.databaseRoots(ctx)
	return login, err
}

// limited reports whether a node is one that issues nothing: its login reads, and does not write for others.
func (s *Services) limited(ctx context.Context, node string) (bool, error) {
	recipients, err := s.Keys.Recipients(ctx)
	if err != nil {
		return false, err
	}
	for _, r := range recipients {
		if r.ID == node && r.Kind == keys.KindNode {
			return !slices.Contains(r.Subsystems, keys.SubsystemCA), nil
		}
	}
	return true, nil
}

// DatabaseRoots are what certifies PostgreSQL's servers, in PEM: the roots of their pool, all of them while one is replaced. They are
// empty where there is no such pool.
func (s *Services) DatabaseRoots(ctx context.Context) (string, error) { return s.databaseRoots(ctx) }

func (s *Services) databaseRoots(ctx context.Context) (string, error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return "", err
	}
	text := ""
	for _, i := range issuers {
		if i.Pool == DatabasePool && i.Root() && i.State == ca.IssuerActive {
			text += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate.Raw}))
		}
	}
	return text, nil
}

// loginsOf are the logins that there are of the nodes named, by node.
func (s *Services) loginsOf(ctx context.Context, nodes []string) (map[string]string, error) {
	all, err := s.DB.Logins(ctx)
	if err != nil {
		return nil, err
	}
	of := map[string]string{}
	for _, node := range nodes {
		if role := LoginRole(node); slices.Contains(all, role) {
			of[node] = role
		}
	}
	return of, nil
}

// loginRequester is who asked for the certificates of a login, so that they are found when it ends. No node's name has a space.
func loginRequester(role string) string { return access.System("login " + role).ID }

// maxLoginCertificates bounds the good certificates of one login: it gets one at two thirds of the life of the last.
const maxLoginCertificates = 1000

// closeLogin ends a node's login, and revokes its certificates.
func (s *Services) closeLogin(ctx context.Context, role string, logger *slog.Logger) error {
	if err := s.DB.DropLogin(ctx, role); err != nil {
		return err
	}
	now := time.Now()
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		held, err := ca.CarriersOf(ctx, tx, loginRequester(role), now, maxLoginCertificates)
		if err != nil {
			return err
		}
		for _, c := range held {
			if err := s.CA.RevokeSerial(ctx, tx, c.Ref, crl.CessationOfOperation, access.System(s.Keys.Self()).Actor(), now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("revoke the certificates of the login %s: %w", role, err)
	}
	s.CA.Announce()
	logger.InfoContext(ctx, "the login of a node that is gone is removed from the database, and its certificates are revoked", "role", role)
	return nil
}
