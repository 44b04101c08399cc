package keyfile

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
)

// Entry is one entry of a key store, PKCS#12 or JKS: a private key with its certification path, or (without a key) a
// trusted certificate.
type Entry struct {
	Alias     string              // PKCS#12's friendlyName, JKS's alias; may be empty in PKCS#12
	Key       crypto.Signer       // nil in a trusted certificate's entry
	Chain     []*x509.Certificate // the key's certificate first; one certificate where there is no key
	CANames   []string            // PKCS#12 only: the friendlyNames of Chain[1:], as far as they are given
	KeyID     []byte              // PKCS#12 only, written and not read: the localKeyID; nil means the SHA-1 of the certificate, as OpenSSL writes it
	CreatedAt time.Time           // JKS only; zero is written as the certificate's notBefore, so that files reproduce
}

// maxStoreKeys bounds the private keys of one key store.
const maxStoreKeys = 100

func checkEntries(entries []Entry) error {
	if len(entries) == 0 {
		return fault.New(fault.Invalid, "a key store needs at least one entry")
	}
	for _, e := range entries {
		switch {
		case len(e.Chain) == 0:
			return fault.New(fault.Invalid, "entry %q has no certificate", e.Alias)
		case e.Key == nil && len(e.Chain) > 1:
			return fault.New(fault.Invalid, "trusted entry %q has %d certificates; it must have one", e.Alias, len(e.Chain))
		case e.Key != nil:
			if err := CheckPair(e.Key, e.Chain[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// SameEntries reports whether two key stores hold the same: keys, paths and aliases, whatever the order, the dates, the
// salts and the upper or lower case of the aliases. It decides whether a key store must be written again.
func SameEntries(a, b []Entry) bool {
	order := func(entries []Entry) []Entry {
		return slices.SortedStableFunc(slices.Values(entries), func(x, y Entry) int {
			if c := cmp.Compare(strings.ToLower(x.Alias), strings.ToLower(y.Alias)); c != 0 || len(x.Chain)*len(y.Chain) == 0 {
				return c
			}
			return bytes.Compare(x.Chain[0].Raw, y.Chain[0].Raw)
		})
	}
	return slices.EqualFunc(order(a), order(b), func(x, y Entry) bool {
		return strings.EqualFold(x.Alias, y.Alias) && samePrivate(x.Key, y.Key) &&
			slices.EqualFunc(x.Chain, y.Chain, (*x509.Certificate).Equal)
	})
}

func samePrivate(a, b crypto.Signer) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	k, ok := a.(interface{ Equal(crypto.PrivateKey) bool })
	return ok && k.Equal(b)
}

// DecodeStore reads a key store of either kind, which it tells by its first bytes. Java writes PKCS#12 into files named
// .jks as well, so the name says nothing.
func DecodeStore(data, password []byte) ([]Entry, error) {
	if bytes.HasPrefix(data, jksMagic) || bytes.HasPrefix(data, jceksMagic) {
		return DecodeJKS(data, password, nil)
	}
	return DecodePKCS12(data, password)
}
