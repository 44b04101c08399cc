package server

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"chancery/client"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/status"
	"github.com/prometheus/client_golang/prometheus"
)

// gauges are what an operator's alarms watch: ends that come near, and CRLs that grow old. They are read from the store when
// they are asked for, so that an alarm never hears what was true a while ago.
type gauges struct {
	services *setup.Services
	logger   *slog.Logger

	expiring, notAfter, thisUpdate, nextUpdate, pending, clock, warnings *prometheus.Desc
	hosts, silent, failed, soonest                                       *prometheus.Desc
	rollouts, holding                                                    *prometheus.Desc
	dataAge, primary                                                     *prometheus.Desc
}

func newGauges(s *setup.Services, logger *slog.Logger) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &gauges{
		services: s, logger: logger,
		expiring: desc("chancery_certificates_expiring",
			"Certificates that end within so many days and were neither revoked nor replaced, without the authority's own; 0: ended in the last thirty days.", "days"),
		notAfter:   desc("chancery_issuer_not_after_seconds", "When an issuer's certificate ends, as Unix time.", "issuer"),
		thisUpdate: desc("chancery_crl_this_update_seconds", "thisUpdate of an issuer's complete CRL, as Unix time.", "issuer"),
		nextUpdate: desc("chancery_crl_next_update_seconds", "nextUpdate of an issuer's complete CRL, as Unix time.", "issuer"),
		pending:    desc("chancery_requests_pending", "Requests that wait for an officer."),
		clock:      desc("chancery_clock_behind", "1 while the clock is behind what the authority has seen, or ahead of the database's, and nothing is signed."),
		warnings:   desc("chancery_status_warnings", "How many things chancery status warns of."),
		hosts:      desc("chancery_hosts", "Hosts, by state: pending, joined, suspect.", "state"),
		silent:     desc("chancery_hosts_silent", "Hosts that have joined and were not seen for an hour."),
		failed:     desc("chancery_placements_failed", "Placements that are not as desired, as their agents last reported."),
		soonest:    desc("chancery_placement_not_after_seconds", "When the placed certificate ends that ends first, as Unix time; absent where none is placed."),
		rollouts:   desc("chancery_rollouts", "Rollouts that are at work, by state: waiting for an offline root, running, paused.", "state"),
		dataAge:    desc("chancery_data_age_seconds", "How old what this node reads may be; 0 beside a primary that answers."),
		primary:    desc("chancery_primary_reachable", "0 while the primary of the database cannot be reached, and changes are refused."),
		holding:    desc("chancery_rollout_holding_hosts", "Hosts that a rollout has told, and waits for, by pool; absent where no rollout is at work.", "pool"),
	}
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.expiring, g.notAfter, g.thisUpdate, g.nextUpdate, g.pending, g.clock, g.warnings,
		g.hosts, g.silent, g.failed, g.soonest, g.rollouts, g.holding, g.dataAge, g.primary} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. While the store does not answer, these metrics are absent, which is an alarm too.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	now, reachable := time.Now(), 1.0
	if g.services.DB.Away() != nil {
		reachable = 0
	}
	gauge(g.primary, reachable)
	gauge(g.dataAge, g.services.DB.Age(now).Seconds())
	st, err := status.Of(ctx, g.services, now)
	if err != nil {
		g.logger.Error("read the status for the metrics", "error", err)
		return
	}
	for _, e := range st.Expiring {
		gauge(g.expiring, float64(e.Count), strconv.FormatInt(e.Days, 10))
	}
	for _, i := range st.Issuers {
		if !i.NotAfter.IsZero() {
			gauge(g.notAfter, float64(i.NotAfter.Unix()), i.Name)
		}
		if !i.NextUpdate.IsZero() {
			gauge(g.thisUpdate, float64(i.ThisUpdate.Unix()), i.Name)
			gauge(g.nextUpdate, float64(i.NextUpdate.Unix()), i.Name)
		}
	}
	h := st.Hosts
	gauge(g.hosts, float64(h.Pending), "pending")
	gauge(g.hosts, float64(h.Joined), "joined")
	gauge(g.hosts, float64(h.Suspect), "suspect")
	gauge(g.silent, float64(h.Silent))
	gauge(g.failed, float64(h.Failed))
	if h.SoonestHost != "" {
		gauge(g.soonest, float64(h.SoonestEnd.Unix()))
	}
	states := map[string]int{client.RolloutWaiting: 0, client.RolloutRunning: 0, client.RolloutPaused: 0}
	for _, w := range st.Rollouts {
		states[w.State]++
		gauge(g.holding, float64(w.Holding), w.Pool)
	}
	for state, n := range states {
		gauge(g.rollouts, float64(n), state)
	}
	gauge(g.pending, float64(st.Pending))
	gauge(g.warnings, float64(len(st.Warnings)))
	behind := 0.0
	if st.Clock != nil {
		behind = 1
	}
	gauge(g.clock, behind)
}
