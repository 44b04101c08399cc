// Package helper is called by package a: what it does is known there by facts.
package helper

import "testing"

func Must(tb testing.TB, err error) { // want Must:"ends by Fatal"
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func Harmless(tb testing.TB, err error) {
	if err != nil {
		tb.Error(err)
	}
}

type Fixture struct{ T *testing.T }

func (f *Fixture) Do() { f.again() } // want Do:"ends by again: FailNow"

func (f *Fixture) again() { // want again:"ends by FailNow"
	if f.T.Failed() {
		f.Do()
	}
	f.T.FailNow()
}

func Run(t *testing.T) {
	t.Run("own", func(t *testing.T) { t.Fatal() })
}
