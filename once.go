package flyregion

import (
	"io"
	"reflect"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// usedOnce reports whether encoding an argument may use it up: it is, or holds however deep, a reader, a function (as
// iterators are) or a channel. Its statement must then go where it need not be run again.
//
// That is told from types alone, and no method of an argument is called. What keeps its place in a plain number cannot be
// told from what always gives the same.
func usedOnce(args []any) bool {
	for _, arg := range args {
		switch arg := arg.(type) {
		case nil, bool, int, int16, int32, int64, uint32, float32, float64, string, []byte, []int, []int32, []int64, []string, time.Time, *string, *int, *time.Time:
		case pgx.NamedArgs:
			for _, v := range arg {
				if usedOnce([]any{v}) {
					return true
				}
			}
		case pgx.StrictNamedArgs:
			if usedOnce([]any{pgx.NamedArgs(arg)}) {
				return true
			}
		default:
			if holdsOneTime(reflect.ValueOf(arg), 0) {
				return true
			}
		}
	}
	return false
}

// typeUse is what a type tells about its values.
type typeUse uint8

const (
	useUnknown typeUse = iota
	useAgain           // none of its values can be used up
	useOnce            // all may be
	useLook            // it has interfaces in it: each value has to be looked at
)

var (
	readerType = reflect.TypeFor[io.Reader]()
	typeUses   sync.Map // of reflect.Type to typeUse
)

// useOf looks at a type, once.
func useOf(t reflect.Type) typeUse {
	if use, ok := typeUses.Load(t); ok {
		return use.(typeUse)
	}
	use := lookAtType(t, map[reflect.Type]bool{})
	typeUses.Store(t, use)
	return use
}

func lookAtType(t reflect.Type, seen map[reflect.Type]bool) typeUse {
	if seen[t] {
		return useAgain
	}
	seen[t] = true
	if t.Implements(readerType) || t.Kind() != reflect.Interface && reflect.PointerTo(t).Implements(readerType) {
		return useOnce
	}
	switch t.Kind() {
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return useOnce
	case reflect.Interface:
		return useLook
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return lookAtType(t.Elem(), seen)
	case reflect.Map:
		return max(lookAtType(t.Key(), seen), lookAtType(t.Elem(), seen))
	case reflect.Struct:
		use := useAgain
		for f := range t.Fields() {
			switch lookAtType(f.Type, seen) {
			case useOnce:
				return useOnce
			case useLook:
				use = useLook
			}
		}
		return use
	}
	return useAgain
}

// holdsOneTime is usedOnce for one value. What is nested deeper than any argument is taken for something that goes round.
func holdsOneTime(v reflect.Value, depth int) bool {
	const deepest = 20
	if !v.IsValid() {
		return false
	}
	switch useOf(v.Type()) {
	case useAgain:
		return false
	case useOnce:
		return true
	}
	if depth > deepest {
		return true
	}
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		return holdsOneTime(v.Elem(), depth+1)
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if holdsOneTime(v.Index(i), depth+1) {
				return true
			}
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if holdsOneTime(it.Key(), depth+1) || holdsOneTime(it.Value(), depth+1) {
				return true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if holdsOneTime(v.Field(i), depth+1) {
				return true
			}
		}
	}
	return false
}
