package keys

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"

	"filippo.io/age"
	"filippo.io/age/armor"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// Recovery is the offline key that opens every wrap. The authority knows its public half only; the private half lies in a
// file under a passphrase, which any age program reads too: age -d recovery.age.
type Recovery struct {
	identity *age.X25519Identity
}

// MinPassphrase is the least number of characters of a passphrase that guards an offline key. The file may be copied and
// tried for years, so length is all that protects it.
const MinPassphrase = 12

// GenerateRecovery makes a new recovery key.
func GenerateRecovery() (*Recovery, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make recovery key: %w", err)
	}
	return &Recovery{identity}, nil
}

// Public returns the age recipient (age1…) to which data keys and backups are wrapped.
func (r *Recovery) Public() string { return r.identity.Recipient().String() }

// Identity returns the key as age takes it, to open a backup.
func (r *Recovery) Identity() age.Identity { return r }

// Unwrap makes the key an age.Identity. It is not age's own type that is given out, since that one prints the key.
func (r *Recovery) Unwrap(stanzas []*age.Stanza) ([]byte, error) { return r.identity.Unwrap(stanzas) }

// Format keeps the key out of every format verb.
func (r *Recovery) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "recovery key %s", r.Public()) }

// LogValue keeps the key out of logs.
func (r *Recovery) LogValue() slog.Value { return slog.StringValue(r.Public()) }

// MarshalText keeps the key out of encodings.
func (r *Recovery) MarshalText() ([]byte, error) { return []byte(r.Public()), nil }

// The cost of guessing a passphrase, as the logarithm of scrypt's N. 18 takes about a second, as age's own command does.
// What others wrote may cost more, up to a bound that keeps a hostile file from taking all memory.
const (
	recoveryWork    = 18
	maxRecoveryWork = 20
)

// Seal returns the offline file of the recovery key: an armored age file under the passphrase.
func (r *Recovery) Seal(passphrase []byte) ([]byte, error) { return r.SealAt(passphrase, recoveryWork) }

// SealAt is Seal at a cost of guessing that the caller chooses, as the logarithm of scrypt's N: for keys of authorities that live for
// seconds, since each sealing and opening at Seal's takes a second of a processor and 256 MiB.
func (r *Recovery) SealAt(passphrase []byte, work int) ([]byte, error) {
	if err := checkPassphrase(passphrase); err != nil {
		return nil, err
	}
	if work < 1 || work > maxRecoveryWork {
		return nil, fault.New(fault.Invalid, "the recovery key is to be sealed at work %d; 1 to %d pass", work, maxRecoveryWork)
	}
	recipient, err := age.NewScryptRecipient(string(passphrase))
	if err != nil {
		return nil, fmt.Errorf("seal recovery key: %w", err)
	}
	recipient.SetWorkFactor(work)
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, recipient)
	if err != nil {
		return nil, fmt.Errorf("seal recovery key: %w", err)
	}
	text := "# public key: " + r.Public() + "\n" + r.identity.String() + "\n"
	if _, err := io.WriteString(w, text); err != nil {
		return nil, fmt.Errorf("seal recovery key: %w", err)
	}
	if err := errors.Join(w.Close(), armored.Close()); err != nil {
		return nil, fmt.Errorf("seal recovery key: %w", err)
	}
	return out.Bytes(), nil
}

// OpenRecovery reads the offline file that Seal returned. No error quotes it: another file may have been named, and hold a secret.
func OpenRecovery(file, passphrase []byte) (*Recovery, error) {
	if len(passphrase) == 0 {
		return nil, fault.New(fault.Invalid, "the passphrase of the recovery key is empty")
	}
	identity, err := age.NewScryptIdentity(string(passphrase))
	if err != nil {
		return nil, fmt.Errorf("open recovery key: %w", err)
	}
	identity.SetMaxWorkFactor(maxRecoveryWork)
	plain, err := age.Decrypt(armor.NewReader(bytes.NewReader(file)), identity)
	if err != nil {
		if _, wrong := errors.AsType[*age.NoIdentityMatchError](err); wrong {
			return nil, fault.New(fault.Invalid, "the passphrase does not open the recovery key")
		}
		if !bytes.HasPrefix(bytes.TrimSpace(file), []byte(armor.Header)) {
			return nil, fault.New(fault.Invalid, "the file of the recovery key is another: it does not begin with %s", armor.Header).
				WithHint("the recovery key is in recovery.age, and its passphrase in a file of its own")
		}
		return nil, fault.New(fault.Invalid, "the recovery key is not an armored age file under a passphrase, or is damaged")
	}
	text, err := io.ReadAll(io.LimitReader(plain, maxNodeKeyFile))
	if err != nil {
		return nil, fault.New(fault.Invalid, "the recovery key is damaged")
	}
	defer clear(text)
	key, err := parseIdentity(string(text))
	if err != nil {
		return nil, fault.New(fault.Invalid, "the recovery file holds no age identity")
	}
	return &Recovery{key}, nil
}

func checkPassphrase(passphrase []byte) error {
	if !utf8.Valid(passphrase) || bytes.ContainsAny(passphrase, "\x00\r\n") {
		return fault.New(fault.Invalid, "the passphrase has a NUL, a line end or is not UTF-8; it is one line of text")
	}
	if n := utf8.RuneCount(passphrase); n < MinPassphrase {
		return fault.New(fault.Invalid, "the passphrase has %d characters; at least %d are wanted, since an offline file can be "+
			"tried without limit", n, MinPassphrase)
	}
	return nil
}

// SealOffline returns a root's key as an offline file: PEM, encrypted PKCS#8 (RFC 5958), which OpenSSL, GnuTLS and Java
// read, so that an operator is not bound to this program on the day it matters.
func SealOffline(key crypto.Signer, passphrase []byte) ([]byte, error) {
	return SealOfflineAt(key, passphrase, recoveryWork)
}

// SealOfflineAt is SealOffline at a cost of guessing that the caller chooses, as Recovery.SealAt has it: one passphrase may seal both, and
// each step halves or doubles what both take.
func SealOfflineAt(key crypto.Signer, passphrase []byte, work int) ([]byte, error) {
	if err := checkPassphrase(passphrase); err != nil {
		return nil, err
	}
	if work < 1 || work > maxRecoveryWork {
		return nil, fault.New(fault.Invalid, "an offline key is to be sealed at work %d; 1 to %d pass", work, maxRecoveryWork)
	}
	file, err := keyfile.EncodeEncryptedPKCS8At(key, passphrase, int(int64(keyfile.PKCS8Iterations)<<work>>recoveryWork))
	if err != nil {
		return nil, fmt.Errorf("seal offline key: %w", err)
	}
	return file, nil
}

// OpenOffline reads a file that SealOffline, or any other program, made.
func OpenOffline(file, passphrase []byte) (crypto.Signer, error) {
	key, err := keyfile.ParsePrivateKey(file, passphrase)
	if err != nil {
		return nil, fmt.Errorf("open offline key: %w", err)
	}
	return key, nil
}
