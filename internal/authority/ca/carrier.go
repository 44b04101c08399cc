package ca

import (
	"context"
	"database/sql"
	"fmt"
	"math/big"
	"slices"
	"time"

	"chancery/internal/store/db"
)

// Carrier is a certificate that is good, or on hold, and has a name.
type Carrier struct {
	Ref       Ref
	Requester string // the principal's ID
	NotAfter  time.Time
	Names     []string // DNS names and addresses, as hosts spell them
}

const carrierColumns = `SELECT c.serial, i.id, c.requester, c.not_after, c.der FROM certificate c JOIN issuer i ON i.number = c.issuer WHERE `

// Carriers are the certificates that have a DNS name or an address, of whomever, neither revoked nor ended: the newest first,
// up to limit.
func Carriers(ctx context.Context, tx *db.Tx, name string, now time.Time, limit int) ([]Carrier, error) {
	rows, err := tx.Query(ctx, carrierColumns+`c.id IN (SELECT id FROM certificate WHERE name = $1 UNION ALL
		SELECT certificate FROM certificate_name WHERE name = $2) AND c.state <> 'revoked' AND c.not_after >= $3 ORDER BY c.id DESC LIMIT $4`,
		[]byte(searchName(name)), []byte(searchName(name)), db.Micros(now), int64(limit))
	found, err := readCarriers(rows, err)
	if err != nil {
		return nil, fmt.Errorf("find who has %s certified: %w", name, err)
	}
	// A common name, as an identity's, is found too, and authorises nobody as a host.
	return slices.DeleteFunc(found, func(c Carrier) bool { return !slices.Contains(c.Names, name) }), nil
}

// CarriersOf are the certificates that a principal requested, neither revoked nor ended: the newest first, up to limit.
func CarriersOf(ctx context.Context, tx *db.Tx, requester string, now time.Time, limit int) ([]Carrier, error) {
	rows, err := tx.Query(ctx, carrierColumns+`c.requester = $1 AND c.state <> 'revoked' AND c.not_after >= $2 ORDER BY c.id DESC LIMIT $3`,
		requester, db.Micros(now), int64(limit))
	found, err := readCarriers(rows, err)
	if err != nil {
		return nil, fmt.Errorf("find what %s has certified: %w", requester, err)
	}
	return found, nil
}

func readCarriers(rows *sql.Rows, err error) ([]Carrier, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []Carrier
	for rows.Next() {
		var c Carrier
		var serial, der []byte
		var notAfter int64
		if err := rows.Scan(&serial, &c.Ref.Issuer, &c.Requester, &notAfter, &der); err != nil {
			return nil, err
		}
		c.Ref.Serial, c.NotAfter = new(big.Int).SetBytes(serial), db.FromMicros(notAfter)
		crt := &Certificate{DER: slices.Clone(der)}
		for _, n := range crt.Names() {
			if text := n.String(); len(text) > 4 && text[:4] == "dns:" {
				c.Names = append(c.Names, searchName(text[4:]))
			} else if len(text) > 3 && text[:3] == "ip:" {
				c.Names = append(c.Names, text[3:])
			}
		}
		found = append(found, c)
	}
	return found, rows.Err()
}
