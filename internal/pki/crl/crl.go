// Package crl builds, reads and checks certificate revocation lists: RFC 5280 §5, complete, partitioned (§5.2.5) and
// delta (§5.2.4).
//
// The writer streams. Entries are kept encoded where they are stored, their total length is known beforehand, and they
// pass through once, hashed on their way, so a list of a million entries costs no more memory than one of ten. The reader
// keeps the octets it was given and walks over them; it makes no value per entry.
//
// Divergences from RFC 5280:
//   - Indirect CRLs are not made and are refused when read (certificateIssuer, indirectCRL): an issuer signs its own list.
//   - nextUpdate is demanded, as §5.1.2.5 demands it of issuers; X.509 lets it be absent.
//   - An empty revokedCertificates, which §5.1.2.6 wants to be absent, is read, since GnuTLS' certtool writes it.
//   - RSASSA-PSS is neither made nor read: no issuer here signs with it, so a CRL that does is another CA's.
//     cert.CheckIssuerKey refuses a key that is bound to it.
//   - holdInstructionCode (§5.3.2, obsolete) is ignored when read.
//   - Ed25519 signs the message and not a hash of it, so its lists are held in memory, up to MaxBuffered octets; longer
//     ones are refused, and want partitions or an ECDSA issuer.
//
// Nothing here does I/O or holds state; every function may be called from many goroutines.
package crl

import (
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"math/big"

	"chancery/internal/fault"
)

// Reason is a CRLReason of RFC 5280 §5.3.1. Its String is the standard's spelling.
type Reason int

// The reasons. 7 is not used.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6
	RemoveFromCRL        Reason = 8 // in delta CRLs only
	PrivilegeWithdrawn   Reason = 9
	AACompromise         Reason = 10
)

func (r Reason) String() string {
	switch r {
	case Unspecified:
		return "unspecified"
	case KeyCompromise:
		return "keyCompromise"
	case CACompromise:
		return "cACompromise"
	case AffiliationChanged:
		return "affiliationChanged"
	case Superseded:
		return "superseded"
	case CessationOfOperation:
		return "cessationOfOperation"
	case CertificateHold:
		return "certificateHold"
	case RemoveFromCRL:
		return "removeFromCRL"
	case PrivilegeWithdrawn:
		return "privilegeWithdrawn"
	case AACompromise:
		return "aACompromise"
	default:
		return "reason " + big.NewInt(int64(r)).String()
	}
}

// Valid reports whether RFC 5280 defines r.
func (r Reason) Valid() bool { return r >= Unspecified && r <= AACompromise && r != 7 }

// Reasons lists every reason that a certificate can be revoked with, in the order of their numbers. It is what a refusal
// names as the values that would pass.
func Reasons() []Reason {
	return []Reason{Unspecified, KeyCompromise, CACompromise, AffiliationChanged, Superseded, CessationOfOperation,
		CertificateHold, PrivilegeWithdrawn, AACompromise}
}

// ParseReason reads a reason in the standard's spelling. removeFromCRL is refused: it is not a reason to revoke.
func ParseReason(text string) (Reason, error) {
	for _, r := range Reasons() {
		if r.String() == text {
			return r, nil
		}
	}
	return 0, fault.New(fault.Invalid, "revocation reason %q is not one of %v", text, Reasons())
}

// Partition says which of n partitioned CRLs covers a serial. Certificates name the distribution point of their partition
// when they are issued, so the function must never change. It hashes, because the serials of an imported CA count upwards.
func Partition(serial *big.Int, n int) int {
	if n <= 1 {
		return 0
	}
	sum := sha256.Sum256(serial.Bytes())
	return int(binary.BigEndian.Uint64(sum[:8]) % uint64(n))
}

var (
	oidReasonCode        = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidInvalidityDate    = asn1.ObjectIdentifier{2, 5, 29, 24}
	oidCertificateIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}
	oidIssuerAltName     = asn1.ObjectIdentifier{2, 5, 29, 18}
	oidCRLNumber         = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidDeltaCRLIndicator = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIssuingDistPoint  = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidAuthorityKeyID    = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidFreshestCRL       = asn1.ObjectIdentifier{2, 5, 29, 46}
	oidAuthorityInfo     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
	oidExpiredCertsOnCRL = asn1.ObjectIdentifier{2, 5, 29, 60}
	maxNumber            = new(big.Int).Lsh(big.NewInt(1), 159) // RFC 5280 §5.2.3: at most 20 octets, and not negative
)
