package token_test

import (
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/token"
)

// BenchmarkSign is a node's signatures with a key in a token: through the helper, each verified. .ci/bench-pkcs11 holds it against
// the library by itself.
func BenchmarkSign(b *testing.B) {
	soft := pkitest.NewSoftHSM(b)
	pins := soft.Init("bench", pin)
	soft.Generate("bench", pin, "EC:prime256v1", "issuer", "01")
	all := token.New(token.Options{
		Node: "node1", Dir: b.TempDir(), Helper: pkitest.TokenHelper(b), Places: []token.Place{{Token: "bench", Module: soft.Module, PINFile: pins}},
	})
	defer all.Close()
	u, err := token.Parse("pkcs11:token=bench;object=issuer")
	if err != nil {
		b.Fatal(err)
	}
	k, err := all.Open(b.Context(), u)
	if err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(4)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := sign(k); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
}
