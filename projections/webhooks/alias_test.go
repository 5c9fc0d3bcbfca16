package webhooks

import (
	"fmt"
	"testing"
	"testing/synctest"
)

// A webhook whose patterns name an alias receives events under the alias, other
// webhooks under the event's own name.
func TestAlias(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{overlaps: true} // there are two webhooks
		w := newWorld(t, Config{})
		w.transport = r
		w.account("ada")
		w.touch("ada", 1)
		w.hook("old", "https://old.example", "ACCOUNT_CREATED_WITH_CIDAAS_IDENTITY", "ACCOUNT_MODIFIED", "ACCOUNT_CREATED_WITH_SOCIAL_IDENTITY")
		w.hook("new", "https://new.example")
		w.run()
		w.settled("old")
		w.settled("new")
		types := map[string]string{}
		for _, g := range r.got() {
			host := g.header.Get("Test-Host")
			types[host] += g.Type + " "
		}
		want := map[string]string{"old.example": "ACCOUNT_CREATED_WITH_CIDAAS_IDENTITY ACCOUNT_MODIFIED ", "new.example": "USER_CREATED USER_UPDATED "}
		if fmt.Sprint(types) != fmt.Sprint(want) {
			t.Errorf("received %v, want %v", types, want)
		}
		if d := w.deliveries("old"); len(d) != 2 || d[0].Type != "ACCOUNT_MODIFIED" {
			t.Errorf("deliveries %+v, want two under their aliases", d)
		}
		w.stop()
	})
}
