package doctor

import (
	"context"
	"fmt"

	"chancery/internal/authority/ca"
	"chancery/internal/upkeep/finding"
)

// TwinLook lists the issuers of one subject or one key.
type TwinLook func(ctx context.Context) ([]ca.Twin, error)

// twins names issuers that relying parties take for each other, or of which one is no safer than the other.
func (n *Node) twins(ctx context.Context, tell func(finding.Finding)) error {
	all, err := n.Twins(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		tell(twin(t))
	}
	return nil
}

func twin(t ca.Twin) finding.Finding {
	both := fmt.Sprintf("issuers %q (%s) and %q (%s)", t.One.Name, t.One.State, t.Other.Name, t.Other.State)
	f := finding.Finding{Level: finding.Warning, Check: "issuers.twins", Object: t.One.Name}
	replaced := "chancery rollout start rotate-issuer --pool " + t.One.Pool + " makes one with a subject and a key of its own; then chancery issuer retire " + t.One.Name
	active := t.One.State == ca.IssuerActive
	switch {
	case t.Compromised && active:
		f.Level, f.Message = finding.Error, both+" have one key, which was revoked as compromised: who has it signs for both, and one issues still"
		f.Hint = "chancery rollout start rotate-issuer --compromised --because TEXT --pool " + t.One.Pool + "; chancery issuer retire " + t.One.Name
	case t.Compromised:
		f.Message = both + " have one key, which was revoked as compromised; neither issues any more"
		f.Hint = "chancery pool trust list " + t.One.Pool + " says whether hosts trust either still"
	case t.BothSignLists:
		f.Level, f.Message = finding.Error, both+" have one subject and one key, so both sign CRLs of one name and key, which contradict each other"
		f.Hint = replaced
	case t.Subject && t.Key:
		f.Message = both + " are one to relying parties: they have one subject and one key, and what is revoked under one is on the CRL of that alone"
		f.Hint = "chancery issuer show " + t.One.Name + "; chancery issuer show " + t.Other.Name
	case t.Key:
		f.Message = both + " have one key: who has that of one signs for both"
		f.Hint = replaced
	default:
		f.Message = both + " have one subject and two keys: many relying parties take the first of two equal subjects, and find no path"
		f.Hint = replaced
	}
	return f
}
