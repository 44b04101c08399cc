package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"chancery/internal/store/db"
)

// Rule names what a Finding is about.
type Rule string

// The rules that Check holds the keys against.
const (
	MissingWrap     Rule = "missing-wrap"     // a recipient is entitled to a key and has no wrap of it
	SuperfluousWrap Rule = "superfluous-wrap" // a wrap to one who is not entitled, or not a recipient
	WrongWrap       Rule = "wrong-wrap"       // a wrap that does not open, or not this key
	WrongKey        Rule = "wrong-key"        // the sealed key is not the one whose public key is stored
	OrphanWrap      Rule = "orphan-wrap"      // a wrap without a key
	NoRecovery      Rule = "no-recovery"      // no recovery recipient is stored
	WrongRecipient  Rule = "wrong-recipient"  // a recipient is stored with a public key that is not its own
	Unendorsed      Rule = "unendorsed"       // this node does not vouch for a recipient, and gives it no keys
)

// Finding is one rule that the stored keys break.
type Finding struct {
	Key       string `json:"key"`
	Recipient string `json:"recipient"`
	Rule      Rule   `json:"rule"`
	Message   string `json:"message"`
}

// Checked says how much Check looked at, so that "no findings" can be told from "nothing there".
type Checked struct {
	Keys   int // keys that are stored
	Wraps  int // wraps that are stored for them
	Opened int // wraps that were really opened, down to the private key
}

// Check holds every key and wrap against the rules. The wraps to this node are opened, each down to the private key; with
// a recovery key, so are those to the recovery recipient. Of other nodes' wraps it can only say whether they are there.
func (s *Store) Check(ctx context.Context, recovery *Recovery) ([]Finding, Checked, error) {
	var done Checked
	all, err := s.Recipients(ctx)
	if err != nil {
		return nil, done, err
	}
	openers, findings := s.openers(all, recovery)
	for after := ""; ; {
		var page []keyWraps
		seen := s.mark()
		err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
			// The recipients as of this page, so that one who joins meanwhile is no finding.
			if all, _, err = s.recipientsBy(ctx, tx, seen); err != nil {
				return err
			}
			page, err = readPage(ctx, tx, after, pageOfKeys)
			return err
		})
		if err != nil {
			return findings, done, fmt.Errorf("check keys: %w", err)
		}
		if len(page) == 0 {
			break
		}
		after = page[len(page)-1].id
		for i := range page {
			k := &page[i]
			done.Keys++
			done.Wraps += len(k.wraps)
			findings = append(findings, k.checkRecipients(all)...)
			for _, by := range openers {
				blob, ok := k.wraps[by.recipient]
				if !ok {
					continue
				}
				if f, bad := k.tryOpen(blob, by); bad {
					findings = append(findings, f)
				} else {
					done.Opened++
				}
			}
		}
	}
	orphans, err := s.orphans(ctx)
	return append(findings, orphans...), done, err
}

// openers returns the recipients whose private half is here, and what is wrong with the recipients themselves.
func (s *Store) openers(all []Recipient, recovery *Recovery) ([]opener, []Finding) {
	var openers []opener
	var findings []Finding
	recoveries, known := 0, false
	for _, r := range all {
		if !r.Endorsed && (r.ID != s.self || r.PublicKey == s.node.Public()) {
			findings = append(findings, Finding{Recipient: r.ID, Rule: Unendorsed, Message: fmt.Sprintf("node %s does not vouch for "+
				"%s %s with the public key %s: %s", s.self, r.Kind, r.ID, r.PublicKey, r.why)})
		}
		switch {
		case r.ID == s.self:
			openers = append(openers, opener{recipient: r.ID, identity: s.node.identity})
			if r.PublicKey != s.node.Public() {
				findings = append(findings, Finding{Recipient: r.ID, Rule: WrongRecipient, Message: fmt.Sprintf(
					"the node is stored with the public key %s, but its key file has %s", r.PublicKey, s.node.Public())})
			}
		case r.Kind == KindRecovery:
			recoveries++
			if recovery != nil && r.PublicKey == recovery.Public() {
				known = true
				openers = append(openers, opener{recipient: r.ID, identity: recovery.identity, recovery: true})
			}
		}
	}
	if recoveries == 0 {
		findings = append(findings, Finding{Rule: NoRecovery, Message: "no recovery recipient is stored; the loss of the nodes " +
			"would be the loss of all keys"})
	}
	if recovery != nil && !known {
		// Whoever can write to the database could put a key of his own there, and would get every later key.
		findings = append(findings, Finding{Rule: WrongRecipient, Message: fmt.Sprintf(
			"no recovery recipient is stored with the public key %s of the recovery key given", recovery.Public())})
	}
	return openers, findings
}

// checkRecipients compares who has a wrap with who should.
func (k *keyWraps) checkRecipients(all []Recipient) []Finding {
	var findings []Finding
	entitled := map[string]bool{}
	for _, r := range all {
		if !r.Entitled(k.purpose, k.owner) {
			continue
		}
		entitled[r.ID] = true
		// One that is not endorsed is a finding by itself; that it lacks a wrap is as it should be.
		if _, ok := k.wraps[r.ID]; !ok && r.Endorsed {
			findings = append(findings, Finding{k.id, r.ID, MissingWrap, fmt.Sprintf("%s %s is entitled to the %s key of %s and "+
				"has no wrap of it", r.Kind, r.ID, k.purpose, k.owner)})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(k.wraps)) {
		if !entitled[id] {
			findings = append(findings, Finding{k.id, id, SuperfluousWrap, fmt.Sprintf("%s has a wrap of the %s key of %s and is "+
				"not entitled to it", id, k.purpose, k.owner)})
		}
	}
	return findings
}

func (k *keyWraps) tryOpen(blob []byte, by opener) (Finding, bool) {
	_, dataKey, err := k.open(blob, by.identity)
	clear(dataKey)
	if err == nil {
		return Finding{}, false
	}
	f := Finding{k.id, by.recipient, WrongWrap, fmt.Sprintf("the wrap to %s is wrong: %v", by.recipient, err)}
	if errors.Is(err, errSPKI) || errors.Is(err, errNoKey) {
		f.Rule, f.Message = WrongKey, err.Error()
	}
	return f, true
}

// orphans finds wraps whose key is gone.
func (s *Store) orphans(ctx context.Context) ([]Finding, error) {
	var findings []Finding
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		findings = nil
		rows, err := tx.Query(ctx, `SELECT key_id, recipient_id FROM key_wrap
			WHERE NOT EXISTS (SELECT 1 FROM sealed_key WHERE sealed_key.id = key_wrap.key_id) ORDER BY key_id, recipient_id LIMIT 1000`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			f := Finding{Rule: OrphanWrap, Message: "the key of this wrap is not stored"}
			if err := rows.Scan(&f.Key, &f.Recipient); err != nil {
				return err
			}
			findings = append(findings, f)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("check wraps: %w", err)
	}
	return findings, nil
}
