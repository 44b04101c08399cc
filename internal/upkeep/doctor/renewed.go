package doctor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"chancery/internal/fleet/trust"
	"chancery/internal/upkeep/finding"
)

// RenewedLook lists the certificates that issuers had before they were renewed, that have not ended, and that hosts present.
type RenewedLook func(ctx context.Context, now time.Time) ([]Renewed, error)

// Renewed is a certificate that an issuer had before it was renewed.
type Renewed struct {
	Issuer, Serial    string
	NotAfter          time.Time
	Revoked           bool // by the issuer above, where that is here
	Placements, Hosts int64
	By                []trust.Presented // who presents it, up to MostPresented
}

// MostPresented is how many placements are named of one certificate.
const MostPresented = 20

// presented names the placements that present an issuer's certificate from before its renewal: its end is theirs.
func (n *Node) presented(ctx context.Context, now time.Time, tell func(finding.Finding)) error {
	all, err := n.Renewed(ctx, now)
	if err != nil {
		return err
	}
	for _, r := range all {
		f := finding.Finding{Level: finding.Warning, Object: r.Issuer, Seen: r.who(),
			Message: fmt.Sprintf("%d placements on %d hosts present the certificate %s that it had before it was renewed, and that ends on %s", r.Placements, r.Hosts, r.Serial,
				r.NotAfter.UTC().Format(time.DateOnly)),
			Do: "see why their agents have not placed the new one; a host that is away counts by what its agent said last"}
		if len(r.By) > 0 {
			f.Hint = "chancery doctor " + r.By[0].Host
		}
		if r.Revoked {
			f.Level = finding.Error
			f.Message += "; it is revoked, so peers that look at CRLs refuse them"
		}
		tell(f)
	}
	if len(all) == 0 {
		tell(finding.Finding{Level: finding.OK, Message: "no host presents a certificate that an issuer had before it was renewed"})
	}
	return nil
}

// who are the placements by their hosts.
func (r *Renewed) who() string {
	var names []string
	for _, p := range r.By {
		names = append(names, p.Host+"/"+p.Placement)
	}
	if more := r.Placements - int64(len(r.By)); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}
