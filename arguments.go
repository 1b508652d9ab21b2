package flyregion

import (
	"bytes"
	"io"
	"math/big"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// consumable reports whether encoding may use an argument up: it is, or contains at any depth, a reader, a function (as
// iterators are) or a channel. Such a statement must run on the primary, as it cannot be run a second time.
//
// This is decided by types alone, and no method of an argument is called. An iterator that keeps its state in a plain number
// is not recognised.
func consumable(args []any) bool {
	for _, arg := range args {
		switch arg := arg.(type) {
		case nil, bool, int, int16, int32, int64, uint32, float32, float64, string, []byte, []int, []int32, []int64, []string, time.Time, *string, *int, *time.Time:
		case pgx.NamedArgs:
			for _, v := range arg {
				if consumable([]any{v}) {
					return true
				}
			}
		case pgx.StrictNamedArgs:
			if consumable([]any{pgx.NamedArgs(arg)}) {
				return true
			}
		default:
			if holdsConsumable(reflect.ValueOf(arg), 0) {
				return true
			}
		}
	}
	return false
}

// typeUse says whether encoding may use up the values of a type.
type typeUse uint8

const (
	useRepeated typeUse = iota // no
	useSingle                  // yes
	useDynamic                 // it contains interfaces: each value has to be inspected
)

var (
	readerType = reflect.TypeFor[io.Reader]()
	typeUses   sync.Map // of reflect.Type to typeUse
)

// useOf returns the use of a type, and remembers it.
func useOf(t reflect.Type) typeUse {
	if use, ok := typeUses.Load(t); ok {
		return use.(typeUse)
	}
	use := inspectUse(t, map[reflect.Type]bool{})
	typeUses.Store(t, use)
	return use
}

func inspectUse(t reflect.Type, seen map[reflect.Type]bool) typeUse {
	if seen[t] {
		return useRepeated
	}
	seen[t] = true
	if t.Implements(readerType) || t.Kind() != reflect.Interface && reflect.PointerTo(t).Implements(readerType) {
		return useSingle
	}
	switch t.Kind() {
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return useSingle
	case reflect.Interface:
		return useDynamic
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return inspectUse(t.Elem(), seen)
	case reflect.Map:
		return max(inspectUse(t.Key(), seen), inspectUse(t.Elem(), seen))
	case reflect.Struct:
		use := useRepeated
		for f := range t.Fields() {
			switch inspectUse(f.Type, seen) {
			case useSingle:
				return useSingle
			case useDynamic:
				use = useDynamic
			}
		}
		return use
	}
	return useRepeated
}

// deepestArgument is the depth to which arguments are inspected. What is nested deeper is taken for cyclic.
const deepestArgument = 20

// holdsConsumable is consumable for one value.
func holdsConsumable(v reflect.Value, depth int) bool {
	if !v.IsValid() {
		return false
	}
	switch useOf(v.Type()) {
	case useRepeated:
		return false
	case useSingle:
		return true
	}
	if depth > deepestArgument {
		return true
	}
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		return holdsConsumable(v.Elem(), depth+1)
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if holdsConsumable(v.Index(i), depth+1) {
				return true
			}
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if holdsConsumable(it.Key(), depth+1) || holdsConsumable(it.Value(), depth+1) {
				return true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if holdsConsumable(v.Field(i), depth+1) {
				return true
			}
		}
	}
	return false
}

// copyArgument returns a copy of an argument that shares nothing with it that the app may change. ok is false if it refers
// to something that only its own package can copy.
func copyArgument(arg any) (c any, ok bool) {
	switch arg := arg.(type) {
	case nil, bool, int, int16, int32, int64, uint32, float32, float64, string, time.Time:
		return arg, true
	case []byte:
		return bytes.Clone(arg), true
	case *string:
		return copyPointer(arg), true
	case *int:
		return copyPointer(arg), true
	case *time.Time:
		return copyPointer(arg), true
	}
	v, ok := copyValue(reflect.ValueOf(arg), 0)
	if !ok {
		return nil, false
	}
	return v.Interface(), true
}

func copyPointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

// typeCopy is how a type's values are copied.
type typeCopy uint8

const (
	copyByAssignment typeCopy = iota // they refer to nothing that can change
	copyDeep                         // all that they refer to can be reached by exported names
	copyNever
)

var (
	bigIntType = reflect.TypeFor[*big.Int]()
	// typeCopies says how types are copied. The types that init puts in have unexported fields, and no methods that change
	// what these refer to.
	typeCopies sync.Map // of reflect.Type to typeCopy
)

func init() {
	for _, t := range []reflect.Type{
		reflect.TypeFor[time.Time](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix](), reflect.TypeFor[netip.AddrPort](),
	} {
		typeCopies.Store(t, copyByAssignment)
	}
	typeCopies.Store(bigIntType, copyDeep)
}

// copyOf returns how a type is copied, and remembers it.
func copyOf(t reflect.Type) typeCopy {
	if how, ok := typeCopies.Load(t); ok {
		return how.(typeCopy)
	}
	how := inspectCopy(t, map[reflect.Type]bool{})
	typeCopies.Store(t, how)
	return how
}

func inspectCopy(t reflect.Type, seen map[reflect.Type]bool) typeCopy {
	if how, ok := typeCopies.Load(t); ok {
		return how.(typeCopy)
	}
	if seen[t] {
		return copyByAssignment
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return copyNever
	case reflect.Interface:
		return copyDeep
	case reflect.Pointer, reflect.Slice:
		return max(copyDeep, inspectCopy(t.Elem(), seen))
	case reflect.Array:
		return inspectCopy(t.Elem(), seen)
	case reflect.Map:
		return max(copyDeep, inspectCopy(t.Key(), seen), inspectCopy(t.Elem(), seen))
	case reflect.Struct:
		if t.PkgPath() == "sync" || t.PkgPath() == "sync/atomic" {
			return copyNever // another goroutine may use what it guards
		}
		how := copyByAssignment
		for f := range t.Fields() {
			field := inspectCopy(f.Type, seen)
			if field == copyDeep && !f.IsExported() {
				return copyNever
			}
			how = max(how, field)
		}
		return how
	}
	return copyByAssignment
}

// copyValue is copyArgument for one value.
func copyValue(v reflect.Value, depth int) (c reflect.Value, ok bool) {
	switch copyOf(v.Type()) {
	case copyByAssignment:
		return v, true
	case copyNever:
		return v, false
	}
	if depth > deepestArgument {
		return v, false
	}
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer, reflect.Slice, reflect.Map:
		if v.IsNil() {
			return v, true
		}
	}

	// into puts a copy of one value into another.
	into := func(to, from reflect.Value) bool {
		c, ok := copyValue(from, depth+1)
		if ok {
			to.Set(c)
		}
		return ok
	}
	switch v.Kind() {
	case reflect.Interface:
		return copyValue(v.Elem(), depth+1)
	case reflect.Pointer:
		if v.Type() == bigIntType {
			return reflect.ValueOf(new(big.Int).Set(v.Interface().(*big.Int))), true
		}
		c = reflect.New(v.Type().Elem())
		return c.Convert(v.Type()), into(c.Elem(), v.Elem())
	case reflect.Slice:
		c = reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		if copyOf(v.Type().Elem()) == copyByAssignment {
			reflect.Copy(c, v)
			return c, true
		}
		for i := range v.Len() {
			if !into(c.Index(i), v.Index(i)) {
				return v, false
			}
		}
		return c, true
	case reflect.Array:
		c = reflect.New(v.Type()).Elem()
		for i := range v.Len() {
			if !into(c.Index(i), v.Index(i)) {
				return v, false
			}
		}
		return c, true
	case reflect.Map:
		c = reflect.MakeMapWithSize(v.Type(), v.Len())
		for it := v.MapRange(); it.Next(); {
			key, keyOK := copyValue(it.Key(), depth+1)
			value, valueOK := copyValue(it.Value(), depth+1)
			if !keyOK || !valueOK {
				return v, false
			}
			c.SetMapIndex(key, value)
		}
		return c, true
	case reflect.Struct:
		c = reflect.New(v.Type()).Elem()
		c.Set(v)
		for i := range v.NumField() {
			if copyOf(v.Field(i).Type()) != copyByAssignment && !into(c.Field(i), v.Field(i)) {
				return v, false
			}
		}
		return c, true
	}
	return v, false
}
