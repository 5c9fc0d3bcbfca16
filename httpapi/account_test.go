package httpapi

import (
	"testing"
)

func TestCreate(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.want(t, 201, "POST", "/v1/accounts", `{"origin":"registered","identities":[{"provider":"self","given_name":"Ada","family_name":"Lovelace","email":"ada@example.com"}],"customFields":{"employee_id":"12345"}}`)
	t.Logf("%s\n%v", r.body, r.header)
	sub := r.text(t, "sub")
	r = l.want(t, 200, "GET", "/v1/accounts/"+sub, "")
	t.Logf("%s\n%v", r.body, r.header)
	r = l.want(t, 200, "PATCH", "/v1/accounts/"+sub, `{"identity":{"family_name":"King"}}`)
	r = l.want(t, 200, "GET", "/v1/accounts/"+sub+"/events", "")
	t.Logf("%s\n%v", r.body, r.header)
	r = l.want(t, 200, "GET", "/v1/events", "")
	t.Logf("%s\n%v", r.body, r.header)
}
