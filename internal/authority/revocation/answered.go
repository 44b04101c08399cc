package revocation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"
)

// Answered says for how many issuers this node answers OCSP requests as of now, and a digest by which nodes see whether theirs are the
// same: SHA-256 over the SHA-256 of each issuer's certificate, sorted. Where the database is away, it is of those that are answered for
// from what is kept.
func (s *Service) Answered(ctx context.Context, now time.Time) (count int, digest string) {
	// What is there is answered for, whether or not it could be read again.
	_ = s.directory.load(ctx, s.ca, now)
	s.directory.mu.Lock()
	var sums [][]byte
	for _, issuer := range s.directory.byID {
		if issuer.Certificate != nil {
			sum := sha256.Sum256(issuer.Certificate.Raw)
			sums = append(sums, sum[:])
		}
	}
	s.directory.mu.Unlock()
	if len(sums) == 0 {
		return 0, ""
	}
	slices.SortFunc(sums, bytes.Compare)
	whole := sha256.Sum256(bytes.Join(sums, nil))
	return len(sums), hex.EncodeToString(whole[:])
}
