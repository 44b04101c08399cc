package certtool

import (
	"math/big"
	"time"

	"chancery/internal/pki/cert"
)

// CRL is what a template says of a CRL.
type CRL struct {
	Number                 *big.Int // nil: the template leaves it to the issuer
	ThisUpdate, NextUpdate time.Time
	RevokedAt              time.Time // of the certificates that are revoked by this run
	NeverExpires           bool      // NextUpdate is 9999-12-31T23:59:59Z
	NextUpdateIsStated     bool      // from the template, and not the default of 365 days
}

// CRL turns the template's options for CRLs into times and a number, as certtool --generate-crl does.
func (t *Template) CRL(now time.Time) (*CRL, error) {
	c := &CRL{}
	var err error
	if c.Number, err = t.bigNumber("crl_number"); err != nil {
		return nil, err
	}
	present := now.UTC().Truncate(time.Second)
	var stated bool
	for _, d := range []struct {
		option string
		field  *time.Time
	}{{"crl_this_update_date", &c.ThisUpdate}, {"crl_revocation_date", &c.RevokedAt}} {
		if *d.field, stated, err = t.date(d.option, now); err != nil {
			return nil, err
		}
		if !stated {
			*d.field = present
		}
	}
	if c.NextUpdate, stated, err = t.date("crl_next_update_date", now); err != nil {
		return nil, err
	}
	if !stated {
		var days int
		days, stated = t.number("crl_next_update")
		c.NextUpdate = daysFrom(now, days)
	}
	c.NextUpdateIsStated, c.NeverExpires = stated, c.NextUpdate.Equal(cert.NoExpiry)
	if t.mode == Strict && !c.NextUpdate.After(c.ThisUpdate) {
		e, ok := t.first("crl_next_update_date")
		if !ok {
			e, _ = t.first("crl_this_update_date")
		}
		return nil, refuse(e, "the next update (%s) would not be after this one (%s), as crl_next_update counts from now; "+
			"set a later crl_next_update_date", c.NextUpdate.Format(time.RFC3339), c.ThisUpdate.Format(time.RFC3339))
	}
	return c, nil
}
