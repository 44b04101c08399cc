package clone

import (
	"context"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// Trouble is what an active node last said is wrong with it, or what others see.
type Trouble struct {
	Node        string
	Said        time.Time // when it last said anything; zero where it never did
	CannotSign  []string  // keys and tokens: issuers whose key is not their certificate's, what does not open
	NotReady    []string  // what else keeps it from answering as it should
	Differences []string  // in what it is not as the others
}

// Troubles are those of all other active nodes that have any, for whoever looks from this one: a node's keys are opened where they are, so
// that another has only its word for how they stand.
func (s *Service) Troubles(ctx context.Context) (found []Trouble, others int, err error) {
	p, err := s.picture(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, r := range p.all {
		if r.state != client.CloneActive || r.name == s.node {
			continue
		}
		others++
		t := Trouble{Node: r.name, Said: r.seen, CannotSign: r.report.CannotSign, Differences: differences(r.name, p.all)}
		for _, why := range r.notReady(p.at) {
			if !slices.Contains(t.CannotSign, why) {
				t.NotReady = append(t.NotReady, why)
			}
		}
		if len(t.CannotSign)+len(t.NotReady)+len(t.Differences) > 0 {
			found = append(found, t)
		}
	}
	return found, others, nil
}

// goodKeys refuses where an issuer's key is not there, or is not its certificate's. A machine that became a node meanwhile would have a row,
// wraps, an identity and a login before it finds out that it cannot sign, which it does find out before it starts. The key of a retired issuer
// is no reason: where it is lost nothing brings it back, and no node could be added ever again. Doctor names it.
func (s *Service) goodKeys(ctx context.Context) error {
	problems, _, err := s.CA.KeyProblems(ctx)
	if err != nil {
		return err
	}
	problems = slices.DeleteFunc(problems, func(p ca.KeyProblem) bool { return p.State == ca.IssuerRetired })
	hint := "chancery doctor and chancery verify; then bring the right key back from a backup, or make a successor: chancery rollout start rotate-issuer"
	if len(problems) > 0 {
		return fault.New(fault.Conflict, "no node is added while the keys of the authority are not whole: %s", problems[0].Message).WithHint("%s", hint)
	}
	// What this node opened before it keeps; another has to find the key in the store.
	var missing []string
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		missing, err = db.TextColumn(ctx, tx, `SELECT name FROM issuer WHERE state <> 'retired' AND key_id <> '' AND length(certificate) > 0
			AND key_id NOT IN (SELECT id FROM sealed_key) AND key_id NOT IN (SELECT id FROM token_key) ORDER BY name`)
		return err
	})
	if err == nil && len(missing) > 0 {
		err = fault.New(fault.Conflict, "no node is added while the keys of the authority are not whole: the key of issuer %s is not in the store; "+
			"a Certificate System says of this: CA private key is null!", missing[0]).WithHint("%s", hint)
	}
	return err
}
