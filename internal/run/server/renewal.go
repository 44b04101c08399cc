package server

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"chancery/client"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/keys"
)

// askFor is how long one node may take to renew another's certificates.
const askFor = 20 * time.Second

// enrol has the issuer of identities certify the node's TLS key; a node without the subsystem ca has one that has it do so.
func (n *node) enrol(ctx context.Context, key crypto.Signer, names []string) ([][]byte, error) {
	if n.runs(keys.SubsystemCA) {
		issued, err := n.services.Identity.Serve(ctx, n.config.Name, key.Public(), names)
		if err != nil {
			return nil, err
		}
		return identity.Path(issued), nil
	}
	csr, err := cert.ProofOfPossession(key)
	if err != nil {
		return nil, err
	}
	joined, err := n.ask(ctx, client.CloneIdentity{CSR: csr, Names: names})
	if err != nil {
		return nil, err
	}
	var path [][]byte
	for _, text := range joined.Certificate {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, errors.New("what the other node answered is no certificate")
		}
		path = append(path, block.Bytes)
	}
	if len(path) == 0 {
		return nil, errors.New("the other node answered without a certificate")
	}
	leaf, err := x509.ParseCertificate(path[0])
	if err != nil {
		return nil, err
	}
	if public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the other node certified another key")
	}
	return path, nil
}

// ask has a node with the subsystem ca renew this node's certificates, the first that answers. This node shows the TLS identity it has.
func (n *node) ask(ctx context.Context, in client.CloneIdentity) (*client.CloneJoined, error) {
	current := n.certificate.current.Load()
	if current == nil {
		return nil, fault.New(fault.Denied, "the node has no TLS identity that it could show (%s)", n.Dir.TLS()).WithHint("%s", n.anew())
	}
	if late := time.Since(current.Leaf.NotAfter); late > identity.Grace {
		return nil, fault.New(fault.Denied, "the node's TLS identity ended at %s, and one that ended more than %d days ago proves nothing",
			current.Leaf.NotAfter.UTC().Format(time.RFC3339), int(identity.Grace.Hours()/24)).WithHint("%s", n.anew())
	}
	roots, err := n.identityRoots()
	if err != nil {
		return nil, err
	}
	all, err := n.runCA(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(in.CSR + in.DatabaseCSR))
	ctx = client.WithIdempotencyKey(ctx, hex.EncodeToString(sum[:])) // whoever answers
	failed := []error{fault.New(fault.Unavailable, "no node that runs ca renewed this node's certificates")}
	for _, other := range all {
		joined, err := n.askOne(ctx, &other, roots, current, in)
		if err == nil {
			return joined, nil
		}
		failed = append(failed, fmt.Errorf("ask node %s at %s: %w", other.Name, other.Address, err))
	}
	return nil, errors.Join(failed...)
}

func byReadiness(a, b client.Clone) int { return cmp.Compare(rank(a), rank(b)) }

// rank puts nodes that are ready before others.
func rank(c client.Clone) int {
	if c.Ready {
		return 0
	}
	return 1
}

func (n *node) askOne(ctx context.Context, other *client.Clone, roots *x509.CertPool, current *tls.Certificate, in client.CloneIdentity) (*client.CloneJoined, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	api, err := client.New(client.Options{
		Address: other.Address, Roots: roots, UserAgent: "chancery/" + n.Version,
		Certificate: func() (*tls.Certificate, error) { return current, nil },
	})
	if err != nil {
		return nil, err
	}
	defer api.Close()
	return api.RenewCloneIdentity(ctx, in)
}

// identityRoots are the pinned roots that the other nodes' identities are under.
func (n *node) identityRoots() (*x509.CertPool, error) {
	text, err := os.ReadFile(n.Dir.IdentityRoot())
	if err != nil {
		return nil, fmt.Errorf("read the pinned identity root: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", n.Dir.IdentityRoot())
	}
	return pool, nil
}

// anew is what to do with a node that cannot prove any more that it is one.
func (n *node) anew() string {
	return fmt.Sprintf("remove it at another node (chancery clone remove %s), and join this machine with a new name: chancery clone invite and join", n.config.Name)
}
