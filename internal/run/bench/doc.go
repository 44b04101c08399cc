// Package bench measures the budgets: real processes on loopback, each beside a peer or a bare limit of the same run.
//
// The node under test is this program's own serve, on a durable store; the load comes from the process of the benchmark.
// All of them share the machine's cores, so a figure is what is left after the load has taken its part. A ratio is the
// median over rounds in which both sides take turns (A B A B A B), so that a machine that slows down slows both.
//
// What is not measured is said to be missed, never left out.
package bench
