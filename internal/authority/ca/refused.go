package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"chancery/internal/store/db"
)

// refusedAtOnce is how many certificates are asked about by one statement.
const refusedAtOnce = 250

// Refused are those of some certificates, as indices with their states, that issuers here revoked or put on hold. One that is not in the
// record is none of them.
func Refused(ctx context.Context, tx *db.Tx, certificates []*x509.Certificate) (map[int]State, error) {
	refused := map[int]State{}
	at := map[string][]int{} // by serial: two issuers may have used it
	var serials []string
	for i, c := range certificates {
		key := string(serialKey(c.SerialNumber))
		if at[key] == nil {
			serials = append(serials, key)
		}
		at[key] = append(at[key], i)
	}
	for part := range slices.Chunk(serials, refusedAtOnce) {
		var places []string
		var args []any
		for _, serial := range db.Padded(part) {
			args = append(args, []byte(serial))
			places = append(places, fmt.Sprintf("$%d", len(args)))
		}
		rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.state <> 'valid' AND c.serial IN (`+strings.Join(places, ", ")+`)`, args...)
		if err != nil {
			return nil, fmt.Errorf("see which certificates were revoked: %w", err)
		}
		found, err := collect(rows)
		if err != nil {
			return nil, fmt.Errorf("see which certificates were revoked: %w", err)
		}
		for _, r := range found {
			for _, i := range at[string(serialKey(r.Serial))] {
				if slices.Equal(r.DER, certificates[i].Raw) {
					refused[i] = r.State
				}
			}
		}
	}
	return refused, nil
}
