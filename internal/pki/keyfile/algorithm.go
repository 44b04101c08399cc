package keyfile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"strconv"
	"strings"

	"chancery/internal/fault"
)

// Algorithm names a kind of key, with or without its size. The empty Algorithm means RSA, the kind that every consumer
// reads.
type Algorithm string

// The algorithms. RSA without a size is 3072 bits, ECDSA without a curve is P-256.
const (
	RSA       Algorithm = "rsa"
	RSA2048   Algorithm = "rsa-2048"
	RSA3072   Algorithm = "rsa-3072"
	RSA4096   Algorithm = "rsa-4096"
	ECDSA     Algorithm = "ecdsa"
	ECDSAP256 Algorithm = "ecdsa-p256"
	ECDSAP384 Algorithm = "ecdsa-p384"
	ECDSAP521 Algorithm = "ecdsa-p521"
	Ed25519   Algorithm = "ed25519"
)

// Algorithms are the names that ParseAlgorithm accepts.
var Algorithms = []Algorithm{RSA, RSA2048, RSA3072, RSA4096, ECDSA, ECDSAP256, ECDSAP384, ECDSAP521, Ed25519}

const (
	defaultRSABits = 3072
	minRSABits     = 2048
	maxRSABits     = 8192 // what the consumers of this authority verify in reasonable time
)

// ParseAlgorithm reads a name as an operator writes it; case does not matter, and "rsa3072", "rsa:3072", "p-256" and the like
// pass.
func ParseAlgorithm(name string) (Algorithm, error) {
	s := strings.ToLower(strings.TrimSpace(name))
	s = strings.NewReplacer("p-256", "p256", "p-384", "p384", "p-521", "p521", ":", "-").Replace(s)
	if size, ok := strings.CutPrefix(s, "rsa"); ok && size != "" && strings.Trim(size, "0123456789") == "" {
		s = "rsa-" + size
	}
	switch s {
	case "ec":
		s = string(ECDSA)
	case "p256", "p384", "p521":
		s = "ecdsa-" + s
	}
	a := Algorithm(s)
	if _, _, err := a.resolve(0); err != nil {
		return "", err
	}
	return a, nil
}

// resolve returns the family of a ("rsa", "ecdsa", "ed25519") and its size in bits; bits overrides a missing size only.
func (a Algorithm) resolve(bits int) (family Algorithm, size int, err error) {
	name, suffix, sized := strings.Cut(string(a), "-")
	family = Algorithm(name)
	if a == "" {
		family = RSA
	}
	if sized {
		size, err = strconv.Atoi(strings.TrimPrefix(suffix, "p"))
		if err != nil || (family == RSA) == strings.HasPrefix(suffix, "p") || family == Ed25519 {
			return "", 0, unknownAlgorithm(a)
		}
		if bits != 0 && bits != size {
			return "", 0, fault.New(fault.Invalid, "algorithm %s has %d bits; %d were asked for as well", a, size, bits)
		}
		bits = size
	}
	switch family {
	case RSA:
		if bits == 0 {
			bits = defaultRSABits
		}
		if bits < minRSABits || bits > maxRSABits || bits%256 != 0 {
			return "", 0, fault.New(fault.Invalid, "an RSA key of %d bits is refused; %d to %d in steps of 256 pass", bits,
				minRSABits, maxRSABits)
		}
	case ECDSA:
		if bits == 0 {
			bits = 256
		}
		if curveOf(bits) == nil {
			return "", 0, fault.New(fault.Invalid, "no ECDSA curve of %d bits is supported; 256, 384 and 521 pass", bits)
		}
	case Ed25519:
		if bits != 0 && bits != 256 {
			return "", 0, fault.New(fault.Invalid, "an Ed25519 key has 256 bits; %d were asked for", bits)
		}
		bits = 256
	default:
		return "", 0, unknownAlgorithm(a)
	}
	return family, bits, nil
}

func unknownAlgorithm(a Algorithm) error {
	return fault.New(fault.Invalid, "algorithm %q is not known; rsa, rsa-2048, rsa-3072, rsa-4096, ecdsa, ecdsa-p256, "+
		"ecdsa-p384, ecdsa-p521 and ed25519 are", printable(string(a)))
}

func curveOf(bits int) elliptic.Curve {
	switch bits {
	case 256:
		return elliptic.P256()
	case 384:
		return elliptic.P384()
	case 521:
		return elliptic.P521()
	}
	return nil
}

// Bits is the key size that Generate(a, bits) would make.
func (a Algorithm) Bits(bits int) (int, error) {
	_, size, err := a.resolve(bits)
	return size, err
}

// Generate makes a key pair. Bits of 0 means the size in a's name, or the default of its family.
func Generate(a Algorithm, bits int) (crypto.Signer, error) {
	family, bits, err := a.resolve(bits)
	if err != nil {
		return nil, err
	}
	var key crypto.Signer
	switch family {
	case RSA:
		key, err = rsa.GenerateKey(rand.Reader, bits)
	case ECDSA:
		key, err = ecdsa.GenerateKey(curveOf(bits), rand.Reader)
	default:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return nil, fmt.Errorf("generate %s key: %w", family, err)
	}
	return key, nil
}

// AlgorithmOf names the algorithm of a public key with its size, as "rsa-3072"; it is empty for a kind of key that this
// package does not make.
func AlgorithmOf(pub crypto.PublicKey) Algorithm {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return Algorithm(fmt.Sprintf("rsa-%d", k.N.BitLen()))
	case *ecdsa.PublicKey:
		if curveOf(k.Curve.Params().BitSize) == k.Curve {
			return Algorithm(fmt.Sprintf("ecdsa-p%d", k.Curve.Params().BitSize))
		}
	case ed25519.PublicKey:
		return Ed25519
	}
	return ""
}
