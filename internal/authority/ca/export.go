package ca

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Format is a form in which the inventory is exported.
type Format string

// The formats of Export: a header line and a line for each certificate (RFC 4180), or a JSON object on each line.
const (
	CSV  Format = "csv"
	JSON Format = "json"
)

// exported is a certificate as Export writes it; the JSON names are the CSV header.
type exported struct {
	Serial         string   `json:"serial"`
	Issuer         string   `json:"issuer"`
	State          State    `json:"state"`
	Subject        string   `json:"subject"`
	Names          []string `json:"names"`
	NotBefore      string   `json:"notBefore"`
	NotAfter       string   `json:"notAfter"`
	Profile        string   `json:"profile"`
	ProfileVersion int      `json:"profileVersion"`
	Requester      string   `json:"requester"`
	IssuedAt       string   `json:"issuedAt"`
	Reason         string   `json:"reason"`
	RevokedAt      string   `json:"revokedAt"`
	InvalidityDate string   `json:"invalidityDate"`
}

var exportHeader = []string{"serial", "issuer", "state", "subject", "names", "notBefore", "notAfter", "profile", "profileVersion",
	"requester", "issuedAt", "reason", "revokedAt", "invalidityDate"}

func (e exported) row() []string {
	return []string{e.Serial, e.Issuer, string(e.State), e.Subject, strings.Join(e.Names, " "), e.NotBefore, e.NotAfter, e.Profile,
		fmt.Sprint(e.ProfileVersion), e.Requester, e.IssuedAt, e.Reason, e.RevokedAt, e.InvalidityDate}
}

// Export writes all that the filter selects, in Search's order. It reads page by page, so it holds neither memory nor a
// transaction for long: what is issued meanwhile may be missing, and each line is of the moment at which it was read.
func (c *CA) Export(ctx context.Context, by access.Principal, w io.Writer, format Format, f Filter) error {
	if format != CSV && format != JSON {
		return fault.New(fault.Invalid, "format %q is not one of csv, json", format)
	}
	sheet, lines := csv.NewWriter(w), json.NewEncoder(w)
	lines.SetEscapeHTML(false)
	if format == CSV {
		if err := sheet.Write(exportHeader); err != nil {
			return fmt.Errorf("export certificates: %w", err)
		}
	}
	names := map[string]string{} // of requesters, by ID
	for after := ""; ; {
		page, next, err := c.Search(ctx, by, f, after, maxPage)
		if err != nil {
			return err
		}
		if err := c.requesters(ctx, page, names); err != nil {
			return fmt.Errorf("export certificates: %w", err)
		}
		for _, crt := range page {
			line := export(crt)
			line.Requester = names[crt.Requester]
			if format == CSV {
				err = sheet.Write(line.row())
			} else {
				err = lines.Encode(line)
			}
			if err != nil {
				return fmt.Errorf("export certificates: %w", err)
			}
		}
		if sheet.Flush(); sheet.Error() != nil {
			return fmt.Errorf("export certificates: %w", sheet.Error())
		}
		if after = next; after == "" {
			return nil
		}
	}
}

// maxRequesters bounds the names that an export remembers: each host may be a requester of its own.
const maxRequesters = 1 << 16

// requesters finds the names of who requested the certificates of a page.
func (c *CA) requesters(ctx context.Context, page []*Certificate, names map[string]string) error {
	if len(names) > maxRequesters {
		clear(names)
	}
	return c.db.Read(ctx, func(tx *db.Tx) (err error) {
		for _, crt := range page {
			if _, ok := names[crt.Requester]; ok {
				continue
			}
			if names[crt.Requester], err = access.NameOf(ctx, tx, crt.Requester); err != nil {
				return err
			}
		}
		return nil
	})
}

func export(crt *Certificate) exported {
	e := exported{
		Serial: cert.FormatSerial(crt.Serial), Issuer: crt.Issuer.Name, State: crt.State, Subject: plain(crt.Subject), Names: []string{},
		NotBefore: utc(crt.NotBefore), NotAfter: utc(crt.NotAfter), Profile: crt.Profile, ProfileVersion: crt.ProfileVersion,
		IssuedAt: utc(crt.IssuedAt()),
	}
	for _, n := range crt.Names() {
		e.Names = append(e.Names, n.String())
	}
	if r := crt.Revocation; r != nil {
		e.Reason, e.RevokedAt, e.InvalidityDate = r.Reason.String(), utc(r.RevokedAt), utc(r.InvalidityDate)
	}
	return e
}

// plain keeps a subject that a spreadsheet would run as a formula from being one.
func plain(text string) string {
	if strings.IndexAny(text, "=+-@\t\r") == 0 {
		return "'" + text
	}
	return text
}

func utc(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// ExpiryCount is how many certificates end within some days, and were neither revoked nor replaced.
type ExpiryCount struct {
	Days  int64 // 0: ended already, in the last thirty days
	Count int64
}

// What ends and will be missed, and what of it the authority renews by itself: identities of callers and nodes, and the
// certificates of OCSP responders, which live shortly. The second, of few rows, is taken
// from the first, which reads its index alone.
const (
	endingAll = `SELECT COUNT(*) FROM certificate WHERE state = 'valid' AND replaced_by = 0 AND not_after >= $1 AND not_after < $2`
	endingOwn = endingAll + ` AND profile IN ('identity', 'ocsp-responder') AND substr(requester, 1, 7) = 'system:'`
)

// Expiring counts what ends within each of the days given, without the authority's own; doctor tells when one of these was
// not renewed.
func (c *CA) Expiring(ctx context.Context, days []int64) ([]ExpiryCount, error) {
	now := time.Now()
	counts := make([]ExpiryCount, len(days))
	err := c.db.Read(ctx, func(tx *db.Tx) error {
		for i, d := range days {
			from, to := now, now.AddDate(0, 0, int(d))
			if d == 0 {
				from = now.AddDate(0, 0, -30)
			}
			counts[i].Days = d
			var own int64
			if err := tx.QueryRow(ctx, endingAll, db.Micros(from), db.Micros(to)).Scan(&counts[i].Count); err != nil {
				return err
			}
			if err := tx.QueryRow(ctx, endingOwn, db.Micros(from), db.Micros(to)).Scan(&own); err != nil {
				return err
			}
			counts[i].Count = max(0, counts[i].Count-own) // one may have been issued between the two
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count what expires: %w", err)
	}
	return counts, nil
}
