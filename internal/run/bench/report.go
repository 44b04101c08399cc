package bench

import (
	"bufio"
	"fmt"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// row is a line of the table. What is zero was not measured.
type row struct {
	what, who, engine, store string

	rate           float64 // a second
	p50, p99, most time.Duration
	errors         int
	cpu, dbCPU     time.Duration // for each call, of the process and of its database server
	loadCPU        time.Duration // for each call, of the benchmark, which takes it from the same cores
	rss            int64
	size           int64
	note           string
}

func (b *bench) add(r row) { b.rows = append(b.rows, r) }

// report prints the table, then the budgets, each missed one with where its time went.
func (b *bench) report() error {
	out := bufio.NewWriter(b.Out)
	fmt.Fprintf(out, "\n%d cores, %s, %d clients, %s in all\n\n", runtime.NumCPU(), runtime.Version(), b.clients, time.Since(b.start).Round(time.Second))
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "what\tengine\tstore\twho\t/s\tp50\tp99\tmax\terrors\tCPU\tdb CPU\tload CPU\tRSS\tsize\tnote")
	for _, r := range b.rows {
		fmt.Fprintln(table, strings.Join([]string{
			r.what, r.engine, r.store, r.who, rate(r.rate), span(r.p50), span(r.p99), span(r.most), fmt.Sprint(r.errors),
			span(r.cpu), span(r.dbCPU), span(r.loadCPU), amount(r.rss), amount(r.size), r.note,
		}, "\t"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, budget := range b.budgets {
		fmt.Fprintln(out, budget)
		if p := b.profiles[budget.Name]; p != nil {
			fmt.Fprintf(out, "  profile: %s\n", p.file)
			for line := range strings.Lines(p.top) {
				fmt.Fprint(out, "    ", strings.TrimRight(line, "\n"), "\n")
			}
		}
	}
	return out.Flush()
}

func rate(v float64) string {
	if v == 0 {
		return ""
	}
	return number(v)
}

func span(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return short(d)
}

func amount(n int64) string {
	if n == 0 {
		return ""
	}
	return octets(n)
}
