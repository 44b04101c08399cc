package client

import "time"

// Proof is a revocation that a host is to try upon its consumers: it uses the certificate, or a twin of it that was issued
// and revoked in one transaction, and says who still takes it.
type Proof struct {
	ID     string `json:"id"`
	Serial string `json:"serial" doc:"of the revoked certificate"`
	Issuer string `json:"issuer" doc:"its issuer's name"`
	// CRLNumber is that of the first complete CRL that lists what is tried; empty until there is one.
	CRLNumber string    `json:"crl_number,omitempty"`
	Ends      time.Time `json:"ends" doc:"until when it is worth an answer"`
}
