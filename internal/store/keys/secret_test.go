package keys_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// Key material in any form a log or a message could have: raw, hexadecimal, base64, age's own text.
func TestKeyMaterialIsNeverPrinted(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		var printed bytes.Buffer
		text := slog.New(slog.NewTextHandler(&printed, &slog.HandlerOptions{Level: slog.LevelDebug}))
		asJSON := slog.New(slog.NewJSONHandler(&printed, nil))
		o := newOffice(t, d)
		key := generate(t, keyfile.ECDSAP256).(*ecdsa.PrivateKey)
		sealed, err := o.store.Seal(ctx, key, keys.Issuer, "i")
		if err != nil {
			t.Fatal(err)
		}
		inTx(t, d, func(tx *db.Tx) error { return o.store.Insert(ctx, tx, sealed, actor, now) })
		signer, err := o.store.Signer(ctx, sealed.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []any{signer, o.node, o.recovery, sealed} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				fmt.Fprintf(&printed, verb+"\n", v)
			}
			text.Info("value", "v", v, "list", []any{v})
			asJSON.Info("value", "v", v, "list", []any{v})
			if err := json.NewEncoder(&printed).Encode(v); err != nil {
				t.Fatal(err)
			}
		}
		run(t, d, `UPDATE key_wrap SET wrap = $1 WHERE recipient_id = 'n1'`, []byte("age-encryption.org/v1\n"))
		o.store.Forget()
		if _, err = o.store.Signer(ctx, sealed.ID); err == nil {
			t.Fatal("a wrong wrap opened")
		}
		text.Error("open", "err", err)
		findings, _, err := o.store.Check(ctx, o.recovery)
		if err != nil {
			t.Fatal(err)
		}
		text.Warn("check", "findings", findings)
		log, err := audit.New(d, "n1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := log.Export(ctx, &printed, audit.Filter{}); err != nil {
			t.Fatal(err)
		}
		scalar, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		secrets := map[string]string{
			"node key": o.node.Secret(), "recovery key": o.recovery.Secret(), "scalar": string(scalar), "scalar in hexadecimal": hex.EncodeToString(scalar),
			"scalar in decimal": new(big.Int).SetBytes(scalar).String(), "scalar in base64": base64.RawStdEncoding.EncodeToString(scalar)[:40],
			"scalar as numbers": strings.Trim(fmt.Sprint(scalar), "[]"), "PKCS#8": base64.StdEncoding.EncodeToString(der)[40:80],
		}
		for name, secret := range secrets {
			if bytes.Contains(bytes.ToLower(printed.Bytes()), []byte(strings.ToLower(secret))) {
				t.Errorf("the %s was printed", name)
			}
		}
		if printed.Len() < 2000 {
			t.Fatalf("only %d octets were printed; the test looked at nothing", printed.Len())
		}
	})
}
