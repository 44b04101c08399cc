package cli

import (
	"context"
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"chancery/internal/fault"
	"chancery/internal/upkeep/examine"
)

type doctorScanCommand struct {
	Targets  []string      `arg:"" name:"CIDR|FILE|DIR|HOST:PORTS" help:"Addresses, a file with certificates or with one HOST:PORT a line, a directory, or a host with its ports: web1:443,8443,9000-9010."`
	Ports    []string      `placeholder:"P,…" help:"Ports to look at where addresses are given; those on which TLS is usual when not given."`
	StartTLS string        `name:"starttls" placeholder:"P" help:"How TLS begins at the ports; guessed from each when not given."`
	Parallel int           `default:"64" placeholder:"N" help:"How many connections are made at a time; 512 at most."`
	Timeout  time.Duration `default:"3s" placeholder:"T" help:"How long a connection may take."`
	Depth    int           `default:"16" placeholder:"N" help:"How many directories deep DIR is walked."`
	Strict   bool          `help:"Fail where something found has a problem."`
}

// Run scans.
func (c *doctorScanCommand) Run(ctx context.Context, g *globals) error {
	if c.Parallel < 1 || c.Parallel > examine.MostParallel {
		return usage("--parallel is 1 to %d, and not %d", examine.MostParallel, c.Parallel)
	}
	if c.Timeout <= 0 || c.Timeout > 5*time.Minute {
		return usage("--timeout is more than nothing and at most 5m, and not %s", c.Timeout)
	}
	targets, err := examine.Targets(c.Targets, c.Ports, examine.WalkLimits{Depth: c.Depth})
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return fault.New(fault.NotFound, "there is nothing in %s that may hold a certificate", strings.Join(c.Targets, ", "))
	}
	o := examine.ScanOptions{Parallel: c.Parallel, Timeout: c.Timeout, StartTLS: c.StartTLS}
	known := false
	if g.Dir != "" || g.Address != "" {
		api, err := g.connect()
		if err != nil {
			return err
		}
		defer api.Close()
		o.Authority, known = &examine.Authority{API: api}, true
	}
	var done atomic.Int64
	o.Done = func() { done.Add(1) }
	end := g.progressing(func() string { return fmt.Sprintf("scanning: %d of %d", done.Load(), len(targets)) })
	result, err := examine.Scan(ctx, targets, o, time.Now())
	end()
	if err != nil {
		return err
	}
	if err := g.scanned(result, known); err != nil {
		return err
	}
	wrong := 0
	for _, f := range result.Found {
		if len(f.Problems) > 0 {
			wrong++
		}
	}
	if c.Strict && wrong > 0 {
		return fault.New(fault.Conflict, "%d of %d found have a problem", wrong, len(result.Found))
	}
	return nil
}

// scanned prints what was found.
func (g *globals) scanned(result *examine.Scanned, known bool) error {
	switch g.Output {
	case "csv":
		return g.scannedCSV(result)
	case "json":
		return list(g, values(result.Found), "", nil)
	}
	if len(result.Found) > 0 {
		header := "EXPIRES WHERE NAMES ISSUER OF PROBLEM"
		if !known {
			header = "EXPIRES WHERE NAMES ISSUER PROBLEM"
		}
		err := list(g, values(result.Found), header, func(f examine.Found) []string {
			row := []string{dayOnly(f.NotAfter), middle(whereOf(f), 32), ends(knownAs(f), 20), ends(commonName(f.Issuer), 16)}
			if known {
				row = append(row, ends(whose(f), 13))
			}
			return append(row, problemOf(f))
		})
		if err != nil {
			return err
		}
	}
	certificates, ours := 0, 0
	for _, f := range result.Found {
		if f.Serial != "" {
			certificates++
		}
		if f.Ours != "" {
			ours++
		}
	}
	text := fmt.Sprintf("%d looked at: %s", result.Looked, plural(certificates, "certificate"))
	if others := len(result.Found) - certificates; others > 0 {
		text = fmt.Sprintf("%d looked at: %s listed, %s and %d without one", result.Looked, plural(len(result.Found), "row"), plural(certificates, "certificate"), others)
	}
	if known {
		text += fmt.Sprintf(" (%d of this authority)", ours)
	}
	if result.Plain > 0 {
		text += ", " + plural(result.Plain, "open port") + " without TLS"
	}
	if result.Closed > 0 {
		text += ", " + plural(result.Closed, "port") + " closed or silent"
	}
	if result.Left > 0 {
		text += fmt.Sprintf("; %d more were found and are not listed", result.Left)
	}
	g.say("%s", text)
	return nil
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// whereOf is where it was found; in a file with several, which.
func whereOf(f examine.Found) string {
	if f.Number > 0 {
		return f.Where + " #" + strconv.Itoa(f.Number)
	}
	return f.Where
}

// knownAs is the name by which a certificate is known, and how many more it has.
func knownAs(f examine.Found) string {
	switch {
	case len(f.Names) == 1:
		return f.Names[0]
	case len(f.Names) > 1:
		return fmt.Sprintf("%s +%d", f.Names[0], len(f.Names)-1)
	case f.Subject != "":
		return commonName(f.Subject)
	}
	return "-"
}

// commonName is the most telling part of a name that is written as RFC 4514 has it.
func commonName(dn string) string {
	if _, after, ok := strings.Cut(dn, "CN="); ok {
		for i := range len(after) {
			if after[i] == ',' && (i == 0 || after[i-1] != '\\') {
				return after[:i]
			}
		}
		return after
	}
	return orDash(dn)
}

func whose(f examine.Found) string {
	switch {
	case f.Serial == "":
		return "-"
	case f.Ours == "":
		return "others"
	}
	return f.Ours
}

// problemOf is the first rule that is broken, without the part that all of them begin with, and how many more are.
func problemOf(f examine.Found) string {
	if len(f.Problems) == 0 {
		return "-"
	}
	_, rule, _ := strings.Cut(f.Problems[0], ".")
	if more := len(f.Problems) - 1; more > 0 {
		rule += fmt.Sprintf(" +%d", more)
	}
	return rule
}

func dayOnly(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateOnly)
}

// ends shortens at the end, and middle in the middle: the end of a path says most.
func ends(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func middle(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n/3]) + "…" + string(r[len(r)-(n-n/3-1):])
	}
	return s
}

// scannedCSV prints all of it for a table calculation. A cell that such a program would take for a formula gets an apostrophe:
// what is in certificates was written by strangers.
func (g *globals) scannedCSV(result *examine.Scanned) error {
	w := csv.NewWriter(g.Out)
	_ = w.Write([]string{"where", "number", "subject", "names", "issuer", "ours", "serial", "not_before", "not_after", "problems", "message"})
	for _, f := range result.Found {
		number := ""
		if f.Number > 0 {
			number = strconv.Itoa(f.Number)
		}
		row := []string{
			f.Where, number, f.Subject, strings.Join(f.Names, " "), f.Issuer, f.Ours, f.Serial, stamp(f.NotBefore), stamp(f.NotAfter), strings.Join(f.Problems, " "), f.Message,
		}
		for i, cell := range row {
			if cell = printable(cell); cell != "" && strings.ContainsRune("=+-@\t", rune(cell[0])) {
				cell = "'" + cell
			}
			row[i] = cell
		}
		_ = w.Write(row)
	}
	w.Flush()
	return w.Error()
}
