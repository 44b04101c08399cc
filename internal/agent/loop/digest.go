package loop

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// digests tell what changed. Each is of one kind of change, because consumers are told of each in a way of its own.
type digests struct {
	Plan    string `json:"plan,omitempty"`
	Keys    string `json:"keys,omitempty"`
	Anchors string `json:"anchors,omitempty"`
	CRLs    string `json:"crls,omitempty"`
	Revoked string `json:"revoked,omitempty"` // what the CRLs say, whatever their number
	Lists   string `json:"lists,omitempty"`   // of whom there are CRLs; empty in what an earlier release placed, too
	Pinned  string `json:"pinned,omitempty"`
}

// gently reports whether going from d to the other leaves a consumer that is not told of it with nothing that matters: the
// same keys, the same trust, the same revoked certificates. A CRL of one more issuer does matter: who looks for one of each
// refuses everybody whose issuer has none.
func (d digests) gently(other digests) bool {
	d.CRLs = other.CRLs
	if d.Lists == "" {
		d.Lists = other.Lists
	}
	return d == other
}

// sameTrust reports whether whom the consumer trusts is the same in the other, though CRLs may be newer.
func (d digests) sameTrust(other digests) bool {
	return d.Anchors == other.Anchors && d.Pinned == other.Pinned && d.Lists == other.Lists
}

// trustStays reports whether what is trusted is the same in the other, so that a consumer which has read it needs to be told
// of certificates only.
func (d digests) trustStays(other digests) bool {
	return d.Keys != "" && d.Anchors == other.Anchors && d.CRLs == other.CRLs && d.Pinned == other.Pinned
}

// digestsOf are the digests of a plan and what goes into its files.
func digestsOf(plan *recipe.Plan, m map[string]*probe.Material) (digests, error) {
	text, err := json.Marshal(plan)
	if err != nil {
		return digests{}, err
	}
	keys, anchors, crls := sha256.New(), sha256.New(), sha256.New()
	pinned := ""
	var lists [][]byte
	for _, planned := range plan.Certificates {
		for _, c := range m[planned.ID].Path {
			keys.Write(c.Raw)
		}
	}
	of := m[mainOf(plan)] // the trust is the same for all
	if uses(plan, "anchors") {
		anchors.Write(keyfile.EncodeCertificates(of.Anchors...))
		if plan.Trust.Intermediates {
			anchors.Write(keyfile.EncodeCertificates(of.Issuers...))
		}
	}
	if uses(plan, "pinned") {
		pinned = hex.EncodeToString(client.Fingerprint(keyfile.EncodeCertificates(of.Pinned...)))
	}
	if uses(plan, "crls") {
		for _, der := range of.CRLs {
			crls.Write(der)
		}
		lists = of.CRLs
	}
	sum := func(b []byte) string { return hex.EncodeToString(b) }
	return digests{
		Plan: sum(client.Fingerprint(text)), Keys: sum(keys.Sum(nil)), Anchors: sum(anchors.Sum(nil)), CRLs: sum(crls.Sum(nil)), Revoked: revokedIn(lists),
		Lists: issuersOf(lists), Pinned: pinned,
	}, nil
}

// mainOf is the ID of the main certificate; empty where a plan is of trust alone.
func mainOf(plan *recipe.Plan) string {
	if len(plan.Certificates) == 0 {
		return ""
	}
	return plan.Certificates[0].ID
}

// takesTrust reports whether a plan places any of the trust.
func takesTrust(plan *recipe.Plan) bool {
	return uses(plan, "anchors") || uses(plan, "crls") || uses(plan, "pinned")
}

func uses(plan *recipe.Plan, content string) bool {
	return slices.ContainsFunc(plan.Files, func(f recipe.PlannedFile) bool { return slices.Contains(f.Content, content) })
}
