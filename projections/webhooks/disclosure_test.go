package webhooks

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Disclosures lists what each webhook received about an account, as it was
// configured at that time, including deleted webhooks.
func TestDisclosures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(g got, _ int) (int, http.Header) {
			if strings.HasPrefix(g.header.Get("Test-Host"), "moody") && g.Sequence == 1 {
				return 500, nil
			}
			return 200, nil
		}}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook?token=secret")
		mail := creation("https://mail.example/hook")
		mail.Events, mail.Payload, mail.Options.Mapping = []string{"USER_CREATED"}, domain.PayloadFields, domain.WebhookMapping{"customer_id": "sub", "contact_mail": "email"}
		w.create("mail", mail)
		w.hook("moody", "https://moody.example/hook")
		w.hook("gone", "https://gone.example/hook")
		w.hook("deaf", "https://deaf.example/hook", "FIELD_*")
		w.account("ada")
		w.touch("ada", 1)
		w.account("bob")
		time.Sleep(time.Second)
		delivered := time.Now()
		if _, err := w.hooks.Delete(t.Context(), asAdmin, "gone"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.hooks.Update(t.Context(), asAdmin, "crm", func(before domain.Webhook) (domain.WebhookSettings, Secrets, error) {
			before.Payload = domain.PayloadThin
			return before.WebhookSettings, Secrets{}, nil
		}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.hooks.SetState(t.Context(), asAdmin, "mail", domain.SetWebhookState{State: domain.WebhookPaused}); err != nil {
			t.Fatal(err)
		}
		w.touch("ada", 1)
		late := creation("https://late.example/hook")
		late.After = -1 // from the head on
		w.create("late", late)
		time.Sleep(time.Second)

		type line struct {
			webhook  string
			sequence int
			status   string
			data     string
		}
		var got []line
		pages := func(limit int) (all []Disclosure) {
			for from := eventstore.Revision(0); ; {
				page, next, err := w.hooks.Disclosures(t.Context(), "ada", from, limit)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, page...)
				if from = next; from == 0 {
					return all
				}
			}
		}
		all := pages(100)
		for _, d := range all {
			got = append(got, line{d.WebhookID, int(d.Sequence), d.Status, strings.Join(d.Data, " ")})
			if known := !d.DeliveredTime.IsZero(); known != (d.Status == StatusDelivered) || d.DeliveredTime.After(delivered.Add(time.Second)) {
				t.Errorf("%+v: a wrong time of delivery", d)
			}
			if d.Deleted != (d.WebhookID == "gone") || strings.Contains(d.URL, "secret") || d.Position == 0 || d.EventID == "" || d.Time.IsZero() {
				t.Errorf("%+v", d)
			}
		}
		const created, updated = "/createdTime /email /email_verified /family_name /given_name /provider /sub /userStatus", "/changes/customFields/tier /fields /sub /timestamp"
		slices.SortStableFunc(got, func(a, b line) int { return strings.Compare(a.webhook, b.webhook) })
		if diff := cmp.Diff([]line{
			{"crm", 0, StatusDelivered, created}, {"crm", 1, StatusDelivered, updated}, {"crm", 2, StatusDelivered, "/sub"},
			{"gone", 0, StatusUnknown, created}, {"gone", 1, StatusUnknown, updated},
			{"mail", 0, StatusDelivered, "/contact_mail /customer_id"},
			{"moody", 0, StatusDelivered, created}, {"moody", 1, StatusRetrying, updated}, {"moody", 2, StatusPending, updated},
		}, got, cmp.AllowUnexported(line{})); diff != "" {
			t.Errorf("disclosures (-want +got):\n%s", diff)
		}
		for _, limit := range []int{1, 2} {
			if diff := cmp.Diff(all, pages(limit)); diff != "" {
				t.Errorf("in pages of %d: %s", limit, diff)
			}
		}
		w.stop()
	})
}
