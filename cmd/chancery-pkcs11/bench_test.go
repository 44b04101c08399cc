package main

import (
	"encoding/binary"
	"os"
	"testing"

	"chancery/internal/store/token/wire"
)

// BenchmarkBare is what the library does by itself, with four sessions for each processor: the limit of what a node can have of it.
// .ci/bench-pkcs11 makes the token.
func BenchmarkBare(b *testing.B) {
	library, label, pin := os.Getenv("BENCH_LIBRARY"), os.Getenv("BENCH_TOKEN"), os.Getenv("BENCH_PIN")
	if library == "" || label == "" || pin == "" {
		b.Fatal("run it by .ci/bench-pkcs11, which makes a token")
	}
	m := &module{path: library}
	k, err := m.open(wire.Selector{Token: label, Object: "issuer"}, pin)
	if err != nil {
		b.Fatal(err)
	}
	number := binary.BigEndian.AppendUint32(nil, k.wire.Number)
	digest := make([]byte, 32)
	b.SetParallelism(4)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		own := &sessions{module: m, bySlot: map[uint]session{}}
		defer own.close()
		for p.Next() {
			if _, err := own.sign(number, wire.ECDSA, digest); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
}
