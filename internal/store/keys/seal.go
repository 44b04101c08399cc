package keys

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"filippo.io/age"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// Sealed is a private key that only its recipients can open, ready to be stored.
type Sealed struct {
	ID        string
	Purpose   Purpose
	Owner     string // the issuer's id; of a TLS key, the node's
	Algorithm string
	SPKI      []byte // SubjectPublicKeyInfo, DER

	ciphertext []byte
	wraps      map[string][]byte // by recipient
	seen       mark              // the newest list that the store had seen then
}

// Seal encrypts key and wraps it to those of the recipients that are entitled to it. It touches no database. Without a
// recovery recipient among them it refuses: a key that only nodes can open is lost with them.
func Seal(key crypto.Signer, id string, purpose Purpose, owner string, recipients []Recipient) (*Sealed, error) {
	switch {
	case !slices.Contains(purposes, purpose):
		return nil, fmt.Errorf("seal key %s: %q is not a purpose", id, purpose)
	case id == "" || owner == "" || strings.ContainsRune(id+owner, 0):
		return nil, fmt.Errorf("seal key %q: it lacks its id or owner", id)
	case !slices.ContainsFunc(recipients, func(r Recipient) bool { return r.Kind == KindRecovery }):
		return nil, fault.New(fault.Conflict, "there is no recovery recipient that this node vouches for, so key %s would be lost with the "+
			"nodes, or be given to a stranger", id).
			WithHint("chancery doctor says what is wrong with the wraps; the recovery recipient's row was changed, or the node is new")
	}
	s := &Sealed{ID: id, Purpose: purpose, Owner: owner, wraps: map[string][]byte{}}
	s.Algorithm = string(keyfile.AlgorithmOf(key.Public()))
	var err error
	if s.SPKI, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return nil, fmt.Errorf("seal key %s: %w", id, err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("seal key %s: a key of type %T cannot be stored", id, key)
	}
	defer clear(plain)
	dataKey := make([]byte, dataKeySize)
	defer clear(dataKey)
	rand.Read(dataKey)
	if s.ciphertext, err = encrypt(dataKey, plain, additional(id, purpose, owner)); err != nil {
		return nil, fmt.Errorf("seal key %s: %w", id, err)
	}
	for _, r := range recipients {
		if !r.Entitled(purpose, owner) {
			continue
		}
		if s.wraps[r.ID], err = wrap(id, dataKey, r.PublicKey); err != nil {
			return nil, fmt.Errorf("wrap key %s to %s: %w", id, r.ID, err)
		}
	}
	return s, nil
}

// LogValue keeps wraps and ciphertext, which are of no use in a log, out of it.
func (s *Sealed) LogValue() slog.Value { return slog.StringValue(s.ID) }

const dataKeySize = 32 // AES-256

// additional is what the ciphertext is bound to: moved to another row, purpose or owner, it does not open.
func additional(id string, purpose Purpose, owner string) []byte {
	b := []byte("chancery sealed key 1\n")
	for _, text := range []string{id, string(purpose), owner} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
		b = append(b, text...)
	}
	return b
}

// encrypt returns nonce || ciphertext || tag. A data key encrypts once, so a random nonce cannot repeat under it.
func encrypt(dataKey, plain, additional []byte) ([]byte, error) {
	aead, err := newAEAD(dataKey)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain, additional), nil
}

func decrypt(dataKey, ciphertext, additional []byte) ([]byte, error) {
	aead, err := newAEAD(dataKey)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, ciphertext, additional)
}

func newAEAD(dataKey []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// wrapLabel begins what is inside a wrap; the key's id and the data key follow. The id is inside, because age has no
// additional data, and a wrap that was moved to another key must not open as that key's.
const wrapLabel = "chancery wrap 1\n"

// maxWrap bounds what is read of a wrap; a real one has a few hundred octets.
const maxWrap = 4 << 10

func wrap(id string, dataKey []byte, publicKey string) ([]byte, error) {
	recipient, err := age.ParseX25519Recipient(publicKey)
	if err != nil {
		return nil, fmt.Errorf("public key %.80q: %w", publicKey, err)
	}
	plain := append(append([]byte(wrapLabel+id), '\n'), dataKey...)
	defer clear(plain)
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipient)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// The ways in which a wrap is wrong. They carry no key material.
var (
	errNotMine  = errors.New("it is not encrypted to this recipient")
	errNoWrap   = errors.New("it is damaged or no wrap")
	errOtherKey = errors.New("it is the wrap of another key")
	errDataKey  = errors.New("its data key does not decrypt the key under this id, purpose and owner")
	errNoKey    = errors.New("what was sealed is not a private key")
	errSPKI     = errors.New("the private key does not belong to the public key that is stored with it")
)

func unwrap(id string, blob []byte, identity age.Identity) ([]byte, error) {
	if len(blob) > maxWrap {
		return nil, errNoWrap
	}
	r, err := age.Decrypt(bytes.NewReader(blob), identity)
	if err != nil {
		if _, other := errors.AsType[*age.NoIdentityMatchError](err); other {
			return nil, errNotMine
		}
		return nil, errNoWrap
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxWrap))
	if err != nil {
		return nil, errNoWrap
	}
	defer clear(plain)
	rest, ok := bytes.CutPrefix(plain, []byte(wrapLabel))
	if !ok || len(rest) < dataKeySize+1 {
		return nil, errNoWrap
	}
	if named := rest[:len(rest)-dataKeySize]; string(named) != id+"\n" {
		return nil, errOtherKey
	}
	return bytes.Clone(rest[len(rest)-dataKeySize:]), nil
}

// record is a stored key with the one wrap that is to open it.
type record struct {
	id         string
	purpose    Purpose
	owner      string
	spki       []byte
	ciphertext []byte
}

// open returns the private key and its data key, which the caller clears.
func (r *record) open(blob []byte, identity age.Identity) (key crypto.Signer, dataKey []byte, err error) {
	if dataKey, err = unwrap(r.id, blob, identity); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			clear(dataKey)
			dataKey = nil
		}
	}()
	plain, err := decrypt(dataKey, r.ciphertext, additional(r.id, r.purpose, r.owner))
	if err != nil {
		return nil, dataKey, errDataKey
	}
	defer clear(plain)
	parsed, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		return nil, dataKey, errNoKey
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, dataKey, errNoKey
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil || !bytes.Equal(spki, r.spki) {
		return nil, dataKey, errSPKI
	}
	return key, dataKey, nil
}

// signer gives out a key's signatures and nothing else. Its fields are not exported and it formats itself, because a
// private key printed with %v is a private key lost.
type signer struct {
	id  string
	key crypto.Signer
}

// Public returns the public key.
func (s *signer) Public() crypto.PublicKey { return s.key.Public() }

// Sign signs digest; it may be called from any goroutine.
func (s *signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.key.Sign(random, digest, opts)
}

// Format keeps the key out of every format verb.
func (s *signer) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "key %s", s.id) }

// LogValue keeps the key out of logs.
func (s *signer) LogValue() slog.Value { return slog.StringValue(s.id) }

// MarshalText keeps the key out of encodings.
func (s *signer) MarshalText() ([]byte, error) { return []byte(s.id), nil }
