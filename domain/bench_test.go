package domain

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore/seal"
)

// BenchmarkCreate64 measures durable account creations by 64 callers, without
// HTTP and without views.
func BenchmarkCreate64(b *testing.B) {
	l := open(b, b.TempDir(), seal.NewMaster())
	var n atomic.Int64
	b.SetParallelism(64 / 2)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			cmd := create(fmt.Sprintf("user%d@example.com", n.Add(1)))
			cmd.Identities[0].Profile.GivenName = "Ada"
			cmd.Identities[0].Profile.FamilyName = "Lovelace"
			cmd.CustomFields = map[string]jsontext.Value{"employee_id": value(`"12345"`)}
			if _, err := l.Execute(b.Context(), by("", ""), NewID().String(), cmd); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "accounts/s")
}

// BenchmarkDecode measures what every follower pays for an event.
func BenchmarkDecode(b *testing.B) {
	l := open(b, b.TempDir(), seal.NewMaster())
	cmd := create("ada@example.com")
	cmd.Identities[0].Profile = fullProfile
	if _, err := l.Execute(b.Context(), by("", ""), "a", cmd); err != nil {
		b.Fatal(err)
	}
	for rec, err := range l.log.ReadStream(b.Context(), AccountStream("a"), 0) {
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := l.codec.Decode(rec); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkEvolve measures folding a creation and rendering the account.
func BenchmarkEvolve(b *testing.B) {
	x := Entry{Type: "account.created.v1", Stream: AccountStream("a"), Event: AccountCreated{Origin: OriginCreated, Status: StatusVerified,
		IdentityID: "i", Provider: ProviderSelf, Profile: fullProfile}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Evolve(NewAccount("a"), x).JSON(); err != nil {
			b.Fatal(err)
		}
	}
}
