// Package projectionstest writes large logs quickly, for tests and benchmarks of
// subscribers.
package projectionstest

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// History describes a log to write.
type History struct {
	Accounts, Events int  // each account gets Events / Accounts events
	Interleaved      bool // the accounts' events alternate instead of being consecutive

	// Body returns the event of an account at a revision. Default: the function
	// Body.
	Body func(account, revision int) (eventType string, clear, personal []byte)
}

// Write appends h to log in large commits, as an import does. With the default
// Body, the events have about 400 bytes, like those of the ledger. Their personal
// part is sealed.
func (h History) Write(t testing.TB, log eventstore.Store, keys *seal.Keys) {
	t.Helper()
	type stream struct {
		sub      string
		key      eventstore.KeyID
		revision eventstore.Revision
	}
	streams := make([]stream, h.Accounts)
	for i := range streams {
		key, err := keys.NewKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		streams[i] = stream{domain.NewID().String(), key, eventstore.NoStream}
	}
	if h.Body == nil {
		h.Body = Body
	}
	per := h.Events / h.Accounts
	var commit eventstore.Commit
	for n := range per * h.Accounts {
		i := n / per
		if h.Interleaved {
			i = n % h.Accounts
		}
		s := &streams[i]
		s.revision++
		eventType, clear, personal := h.Body(i, int(s.revision))
		e := eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: eventType, Actor: "import:bench", KeyID: s.key, Clear: clear}
		var err error
		e.Sealed, err = keys.Seal(s.key, seal.Context{EventID: e.ID, Stream: domain.AccountStream(s.sub), Revision: s.revision, Type: eventType}, personal)
		if err != nil {
			t.Fatal(err)
		}
		if w := len(commit.Writes); w > 0 && commit.Writes[w-1].Stream == domain.AccountStream(s.sub) {
			commit.Writes[w-1].Events = append(commit.Writes[w-1].Events, e)
		} else {
			commit.Writes = append(commit.Writes, eventstore.Write{Stream: domain.AccountStream(s.sub), Expected: s.revision - 1, Events: []eventstore.Event{e}})
		}
		if (n+1)%min(1000, h.Accounts) == 0 || n+1 == per*h.Accounts {
			if _, err := log.Append(t.Context(), commit); err != nil {
				t.Fatal(err)
			}
			commit = eventstore.Commit{}
		}
	}
}

// Body returns the event of an account at a revision: its creation at revision 0,
// then alternating changes. clear is the event's open part, personal the part to
// seal.
func Body(account, revision int) (eventType string, clear, personal []byte) {
	meta := fmt.Sprintf(`"meta":{"actor":{"kind":"import","id":"bench"},"commandId":"%d-%d"}`, account, revision)
	identity := fmt.Sprintf("00000000-0000-7000-8000-%012d", account)
	doc := func(clear, personal string) ([]byte, []byte) {
		return []byte(`{` + meta + `,"data":` + clear + `}`), []byte(`{"data":` + personal + `}`)
	}
	switch {
	case revision == 0:
		eventType = domain.TypeOf(domain.AccountCreated{})
		clear, personal = doc(`{"origin":"imported","userStatus":"VERIFIED","identityId":"`+identity+`","provider":"self"}`,
			fmt.Sprintf(`{"profile":{"given_name":"Given %[1]d","family_name":"Family %[1]d","email":"person%[1]d@example.org","email_verified":true,"mobile_number":"+49151%08[1]d","mobile_number_verified":false,"locale":"de-DE"},"customFields":{"employee_id":"%[1]d"}}`, account))
	case revision%3 == 0:
		eventType = domain.TypeOf(domain.StatusChanged{})
		clear, personal = doc(`{"from":"VERIFIED","to":"VERIFIED"}`, `{"reason":"reviewed by the back office"}`)
	case revision%3 == 1:
		eventType = domain.TypeOf(domain.ProfileUpdated{})
		clear, personal = doc(`{"identityId":"`+identity+`","fields":["family_name","nickname"]}`,
			fmt.Sprintf(`{"changes":{"family_name":"Family %d of %d","nickname":"Nick %d"}}`, revision, account, account))
	default:
		eventType = domain.TypeOf(domain.CustomFieldsUpdated{})
		clear, personal = doc(`{"fields":["tier","visits"]}`, fmt.Sprintf(`{"values":{"tier":"gold","visits":%d}}`, revision))
	}
	return eventType, clear, personal
}
