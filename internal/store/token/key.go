package token

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
	"chancery/internal/store/token/wire"
)

// Key is a private key in a token.
type Key struct {
	tokens *Tokens
	reach  *reach
	asked  *URI // how it is found here
	uri    *URI
	public crypto.PublicKey
	spki   []byte

	Extractable bool // the token may give the key out, so somebody may have a copy
}

// URI is the one under which the key is found again, on any node that reaches its token.
func (k *Key) URI() *URI { return k.uri }

// Public returns the public key.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Format keeps what is inside out of every format verb.
func (k *Key) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "key %s", k.uri) }

// LogValue keeps it out of logs.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.uri.String()) }

// signBound is how long a signature may take with all that is tried again: a helper that hung, and a turn after it.
func (t *Tokens) signBound() time.Duration { return 3 * max(t.answer, answerTime) }

// attempts is how often a call is made, with as many helpers. A helper that was killed is replaced at once; one that dies of
// this very request would die each time.
const attempts = 4

// Sign signs a digest, or for Ed25519 a message. The signature is verified before it is returned: one that a fault in the
// token, or in its library, spoilt can give an RSA key away to whoever sees it.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), k.tokens.signBound())
	defer cancel()
	return k.sign(ctx, digest, opts)
}

func (k *Key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	how, data, err := mechanism(k.public, digest, opts)
	if err != nil {
		return nil, err
	}
	var raw []byte
	err = k.again(ctx, func(h *helper, key *wire.Key) (wire.Code, []byte, error) {
		code, answer, err := h.sign(ctx, key.Number, how, data)
		if code == wire.OK {
			raw = answer
		}
		return code, answer, err
	})
	if err != nil {
		return nil, err
	}
	signature, err := check(k.public, digest, opts, raw)
	if err != nil {
		k.tokens.logger.Error("a token gave a wrong signature, which goes nowhere", "key", k.uri.String(), "error", err)
		return nil, fmt.Errorf("sign with the token's key %s: %w", k.uri, err)
	}
	return signature, nil
}

// again makes a call with this key in a helper, and makes it again in another one where the first was lost.
func (k *Key) again(ctx context.Context, call func(*helper, *wire.Key) (wire.Code, []byte, error)) error {
	var last error
	for range attempts {
		if why := k.reach.resting(time.Now()); why != "" {
			return k.away(why, nil)
		}
		l, err := k.tokens.library(k.reach)
		if err != nil {
			return err
		}
		h, err := l.running(ctx, k.tokens)
		if err != nil {
			return k.away(err.Error(), err)
		}
		found, err := k.in(ctx, l, h)
		if errors.Is(err, errLost) {
			last = err
			continue
		}
		if err != nil {
			return err
		}
		code, answer, err := call(h, found)
		switch {
		case errors.Is(err, errLost):
			last = err
			l.drop(h)
		case err != nil:
			return k.away(err.Error(), err)
		case code == wire.OK:
			l.works(h)
			return nil
		case code == wire.Gone:
			last = errors.New(printable(answer))
			l.drop(h)
		default:
			return k.away(printable(answer), nil)
		}
	}
	return k.away(fmt.Sprintf("%d helpers were lost, the last one: %v", attempts, last), last)
}

// away says that this node does not reach the key.
func (k *Key) away(why string, cause error) error {
	u := k.uri
	if u == nil {
		u = &URI{Token: k.asked.Token, Serial: k.asked.Serial, Object: k.asked.Object, ID: k.asked.ID}
	}
	return k.tokens.away(u, why, cause)
}

// locate finds the key for the first time.
func (k *Key) locate(ctx context.Context) (found *wire.Key, err error) {
	err = k.again(ctx, func(_ *helper, key *wire.Key) (wire.Code, []byte, error) {
		found = key
		return wire.OK, nil, nil
	})
	return found, err
}

// in returns the key as a helper knows it, which finds it when it is first asked.
func (k *Key) in(ctx context.Context, l *library, h *helper) (*wire.Key, error) {
	o := h.opened(k.asked.String())
	if o.opening.take(ctx) != nil {
		return nil, k.away("it is being opened, and the token did not answer yet", nil)
	}
	defer o.opening.give()
	if o.key != nil {
		return o.key, nil
	}
	found, why, err := k.tokens.attempt(ctx, k.reach, l, h, k.asked)
	switch {
	case err != nil:
		return nil, err
	case why != "":
		return nil, k.away(why, nil)
	case k.spki != nil && !bytes.Equal(k.spki, found.SPKI):
		return nil, fault.New(fault.Conflict, "the token %s on node %s holds another key under %s than it did", k.reach, k.tokens.node, k.uri)
	}
	o.key = found
	h.found.Add(1)
	return found, nil
}

// mechanism says how a token is asked for what a crypto.Signer is asked for.
func mechanism(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts) (wire.Mechanism, []byte, error) {
	hash := opts.HashFunc()
	if _, message := public.(ed25519.PublicKey); message {
		if hash != 0 {
			return 0, nil, fmt.Errorf("Ed25519 signs messages, and a digest of %s was given", hash)
		}
		return wire.EdDSA, digest, nil
	}
	if hash == 0 || !hash.Available() || len(digest) != hash.Size() {
		return 0, nil, fmt.Errorf("a digest of %d octets is none of %s", len(digest), hash)
	}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		// A digest is cut to the length of the group's order (FIPS 186-5 section 6.4), which not all libraries do.
		return wire.ECDSA, digest[:min(len(digest), (public.Params().N.BitLen()+7)/8)], nil
	case *rsa.PublicKey:
		pss, ok := opts.(*rsa.PSSOptions)
		if !ok {
			prefix, known := digestInfo[hash]
			if !known {
				return 0, nil, fmt.Errorf("no RSA signature over %s is made here", hash)
			}
			return wire.PKCS1, append([]byte(prefix), digest...), nil
		}
		m, known := map[crypto.Hash]wire.Mechanism{crypto.SHA256: wire.PSSWithSHA256, crypto.SHA384: wire.PSSWithSHA384, crypto.SHA512: wire.PSSWithSHA512}[hash]
		if !known || pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != hash.Size() {
			return 0, nil, fmt.Errorf("RSA-PSS is made here with SHA-2 and a salt as long as the digest, and not with %s and a salt of %d", hash, pss.SaltLength)
		}
		return m, digest, nil
	}
	return 0, nil, fmt.Errorf("a key of type %T does not sign here", public)
}

// digestInfo are the beginnings of DigestInfo (RFC 8017 section 9.2, note 1).
var digestInfo = map[crypto.Hash]string{
	crypto.SHA256: "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
	crypto.SHA384: "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
	crypto.SHA512: "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
}

var errWrong = errors.New("the signature that the token gave does not verify under its public key")

// check returns a signature in the form of a crypto.Signer, if it is one.
func check(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts, raw []byte) ([]byte, error) {
	right := false
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		half := len(raw) / 2
		if half == 0 || len(raw)%2 != 0 {
			return nil, errWrong
		}
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(new(big.Int).SetBytes(raw[:half]))
			b.AddASN1BigInt(new(big.Int).SetBytes(raw[half:]))
		})
		der, err := b.Bytes()
		if err != nil {
			return nil, err
		}
		raw, right = der, ecdsa.VerifyASN1(public, digest, der)
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			right = rsa.VerifyPSS(public, opts.HashFunc(), digest, raw, pss) == nil
		} else {
			right = rsa.VerifyPKCS1v15(public, opts.HashFunc(), digest, raw) == nil
		}
	case ed25519.PublicKey:
		right = len(raw) == ed25519.SignatureSize && ed25519.Verify(public, digest, raw)
	}
	if !right {
		return nil, errWrong
	}
	return raw, nil
}
