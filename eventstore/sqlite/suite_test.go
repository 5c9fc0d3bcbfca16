package sqlite_test

import (
	"testing"

	"accountledger/eventstore"
	"accountledger/eventstore/eventstoretest"
	"accountledger/eventstore/sqlite"
)

func TestStore(t *testing.T) {
	t.Parallel()
	signer, _ := newSigner(t)
	eventstoretest.Run(t, func(t *testing.T, dir string) eventstore.Store {
		s, err := sqlite.Open(t.Context(), sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
