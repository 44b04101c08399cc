package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"chancery/client"
)

// fullCRL measures a complete CRL over all that is revoked, beside hashing and writing the same octets.
func (b *bench) fullCRL(ctx context.Context, a *authority) error {
	list, err := b.settle(ctx, a)
	if err != nil {
		return err
	}
	if list.Entries < int64(b.certificates) {
		return fmt.Errorf("the complete CRL has %d entries, and %d certificates are revoked", list.Entries, b.certificates)
	}
	der, err := fetch(ctx, "http://"+a.public()+"/crl/"+deltaIssuer+".crl")
	if err != nil {
		return err
	}
	if int64(len(der)) != list.Size {
		return fmt.Errorf("the complete CRL has %d octets, of which %d were served", list.Size, len(der))
	}
	var ours, bare latencies
	var ratios []float64
	var peak int64
	for range b.rounds {
		if err := forgetPeak(a.node.PID()); err != nil {
			return err
		}
		begin := time.Now()
		if _, err := a.client.IssueCRL(ctx, deltaIssuer, issueCRL); err != nil {
			return err
		}
		ours = append(ours, time.Since(begin))
		high, err := memory(a.node.PID(), "VmHWM")
		if err != nil {
			return err
		}
		peak = max(peak, high)
		took, err := hashAndWrite(filepath.Join(b.dir, "bare.crl"), der)
		if err != nil {
			return err
		}
		bare = append(bare, took)
		ratios = append(ratios, float64(ours[len(ours)-1])/float64(took))
	}
	what := fmt.Sprintf("complete CRL of %d entries", list.Entries)
	b.add(row{what: what, who: "chancery", engine: a.engine, store: revoked, p50: ours.percentile(50), most: ours.percentile(100), rss: peak, note: "peak RSS; " + octets(list.Size)})
	b.add(row{what: what, who: "hash, write, fsync", engine: a.engine, store: revoked, p50: bare.percentile(50), most: bare.percentile(100)})
	again := func(ctx context.Context) error {
		for end := time.Now().Add(b.profileLength); time.Now().Before(end); {
			if _, err := a.client.IssueCRL(ctx, deltaIssuer, issueCRL); err != nil {
				return err
			}
		}
		return nil
	}
	b.judge(ctx, "full-crl-time."+a.engine+"."+revoked, median(ratios), b.profiler(a, again))
	b.judge(ctx, "full-crl-memory."+a.engine+"."+revoked, float64(peak)/1e6, b.heap(a))
	return nil
}

// settle has the lists made that so many revocations at once make due, which takes longer than any later one: their entries
// are packed first.
func (b *bench) settle(ctx context.Context, a *authority) (list *client.CRL, err error) {
	for _, issuer := range []string{partsIssuer, deltaIssuer} {
		begin := time.Now()
		if list, err = a.client.IssueCRL(ctx, issuer, issueCRL); err != nil {
			return nil, fmt.Errorf("sign the complete CRL of issuer %s: %w", issuer, err)
		}
		b.say("%s: the first complete CRL of issuer %s, of %d entries, took %s", a.engine, issuer, list.Entries, short(time.Since(begin)))
	}
	return list, nil
}

// hashAndWrite is the least that a CRL costs: its octets are hashed once, and reach the disk.
func hashAndWrite(path string, octets []byte) (time.Duration, error) {
	begin := time.Now()
	sha256.Sum256(octets)
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	_, err = f.Write(octets)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return time.Since(begin), os.Remove(path)
}

// starts measures how long the node takes from exec until it is ready. The store was just written, so the file cache is warm.
func (b *bench) starts(ctx context.Context, a *authority) error {
	var took latencies
	for range b.rounds {
		if err := a.stop(); err != nil {
			return err
		}
		d, err := a.start(ctx)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	rss, err := memory(a.node.PID(), "VmRSS")
	if err != nil {
		return err
	}
	b.add(row{what: "start", who: "exec to ready", engine: a.engine, store: full, p50: took.percentile(50), most: took.percentile(100), rss: rss})
	b.judge(ctx, "start."+a.engine+"."+full, float64(took.percentile(100).Microseconds())/1e3, nil)
	return nil
}
