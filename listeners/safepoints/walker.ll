; The compiled walker and its table: what nativewalk.py describes, and its only user.
; The multiplier of the hash is 2^64 over the golden ratio: Knuth, The Art of Computer Programming,
; volume 3, 6.4. An entry's address is written last: who sees it sees the rest of the entry, too.

%entry = type { i64, i64, ptr, i32, i32 }

define internal ptr @find(ptr %slots, i64 %address) alwaysinline {
  %shift = load i64, ptr %slots
  %mask.at = getelementptr i64, ptr %slots, i64 1
  %mask = load i64, ptr %mask.at
  %entries = getelementptr i64, ptr %slots, i64 4
  %product = mul i64 %address, -7046029254386353131
  %first = lshr i64 %product, %shift
  br label %probe
probe:
  %index = phi i64 [ %first, %0 ], [ %next, %other ]
  %entry = getelementptr %entry, ptr %entries, i64 %index
  %key = load atomic i64, ptr %entry acquire, align 8
  %hit = icmp eq i64 %key, %address
  br i1 %hit, label %found, label %missed
missed:
  %empty = icmp eq i64 %key, 0
  br i1 %empty, label %nowhere, label %other
other:
  %following = add i64 %index, 1
  %next = and i64 %following, %mask
  br label %probe
found:
  ret ptr %entry
nowhere:
  ret ptr null
}

define i64 @find_entry(ptr %table, i64 %address) {
  %old = atomicrmw add ptr %table, i64 1 seq_cst
  %slots.at = getelementptr i64, ptr %table, i64 1
  %slots = load atomic ptr, ptr %slots.at seq_cst, align 8
  %entry = call ptr @find(ptr %slots, i64 %address)
  %left = atomicrmw sub ptr %table, i64 1 seq_cst
  %found = ptrtoint ptr %entry to i64
  ret i64 %found
}

define i64 @idle(ptr %table) {
  fence seq_cst
  %walks = load atomic i64, ptr %table seq_cst, align 8
  ret i64 %walks
}

; Puts entries into slots that have room; gives how many were never used before.
define i64 @insert(ptr %slots, ptr %new, i64 %count) {
  %shift = load i64, ptr %slots
  %mask.at = getelementptr i64, ptr %slots, i64 1
  %mask = load i64, ptr %mask.at
  %entries = getelementptr i64, ptr %slots, i64 4
  br label %each
each:
  %number = phi i64 [ 0, %0 ], [ %number.next, %put ]
  %fresh = phi i64 [ 0, %0 ], [ %fresh.next, %put ]
  %done = icmp eq i64 %number, %count
  br i1 %done, label %end, label %hash
hash:
  %from = getelementptr %entry, ptr %new, i64 %number
  %address = load i64, ptr %from
  %product = mul i64 %address, -7046029254386353131
  %first = lshr i64 %product, %shift
  br label %probe
probe:
  %index = phi i64 [ %first, %hash ], [ %next, %other ]
  %to = getelementptr %entry, ptr %entries, i64 %index
  %key = load i64, ptr %to
  %free = icmp ule i64 %key, 1
  br i1 %free, label %put, label %other
other:
  %following = add i64 %index, 1
  %next = and i64 %following, %mask
  br label %probe
put:
  %to.rest = getelementptr i64, ptr %to, i64 1
  %from.rest = getelementptr i64, ptr %from, i64 1
  call void @llvm.memcpy.p0.p0.i64(ptr %to.rest, ptr %from.rest, i64 24, i1 false)
  store atomic i64 %address, ptr %to release, align 8
  %unused = icmp eq i64 %key, 0
  %one = zext i1 %unused to i64
  %fresh.next = add i64 %fresh, %one
  %number.next = add i64 %number, 1
  br label %each
end:
  ret i64 %fresh
}

define void @remove(ptr %slots, ptr %old, i64 %count) {
  br label %each
each:
  %number = phi i64 [ 0, %0 ], [ %number.next, %next ]
  %done = icmp eq i64 %number, %count
  br i1 %done, label %end, label %one
one:
  %from = getelementptr %entry, ptr %old, i64 %number
  %address = load i64, ptr %from
  %entry = call ptr @find(ptr %slots, i64 %address)
  %gone = icmp eq ptr %entry, null
  br i1 %gone, label %next, label %bury
bury:
  store atomic i64 1, ptr %entry release, align 8
  br label %next
next:
  %number.next = add i64 %number, 1
  br label %each
end:
  ret void
}

; Whether a return address is in loaded code: the last range that starts before it ends behind.
define internal i1 @is_code(ptr %table, i64 %address) {
  %code.at = getelementptr i64, ptr %table, i64 2
  %code = load atomic ptr, ptr %code.at seq_cst, align 8
  %count = load i64, ptr %code
  %ranges = getelementptr i64, ptr %code, i64 1
  br label %halve
halve:
  %low = phi i64 [ 0, %0 ], [ %low.next, %compare ]
  %high = phi i64 [ %count, %0 ], [ %high.next, %compare ]
  %more = icmp ult i64 %low, %high
  br i1 %more, label %compare, label %last
compare:
  %sum = add i64 %low, %high
  %middle = lshr i64 %sum, 1
  %middle.at = mul i64 %middle, 2
  %start.at = getelementptr i64, ptr %ranges, i64 %middle.at
  %start = load i64, ptr %start.at
  %before = icmp ult i64 %start, %address
  %above = add i64 %middle, 1
  %low.next = select i1 %before, i64 %above, i64 %low
  %high.next = select i1 %before, i64 %high, i64 %middle
  br label %halve
last:
  %none = icmp eq i64 %low, 0
  br i1 %none, label %outside, label %inside
inside:
  %behind = mul i64 %low, 2
  %end.index = sub i64 %behind, 1
  %end.at = getelementptr i64, ptr %ranges, i64 %end.index
  %end = load i64, ptr %end.at
  %within = icmp ule i64 %address, %end
  ret i1 %within
outside:
  ret i1 false
}

; Whether a slot can be at an address: a multiple of 8 of 47 bits, as in walk.py.
define internal i1 @is_slot(i64 %address) alwaysinline {
  %bits = and i64 %address, -140737488355321
  %none = icmp eq i64 %bits, 0
  ret i1 %none
}

define i64 @walk(ptr %table, ptr %anchors, ptr %out, i64 %capacity) {
enter:
  %old = atomicrmw add ptr %table, i64 1 seq_cst
  %slots.at = getelementptr i64, ptr %table, i64 1
  %slots = load atomic ptr, ptr %slots.at seq_cst, align 8
  br label %part

part:
  %anchor = phi ptr [ %anchors, %enter ], [ %outer, %outwards ]
  %part.total = phi i64 [ 0, %enter ], [ %total, %outwards ]
  %inner.end = phi i64 [ 0, %enter ], [ %slot, %outwards ]
  %part.slot = load i64, ptr %anchor
  %fp.at = getelementptr i64, ptr %anchor, i64 1
  %part.fp = load i64, ptr %fp.at
  %ordered = icmp uge i64 %part.slot, %inner.end
  %part.possible = call i1 @is_slot(i64 %part.slot)
  %begun = and i1 %ordered, %part.possible
  br i1 %begun, label %frame, label %disorder

frame:
  %slot = phi i64 [ %part.slot, %part ], [ %caller.slot, %step ]
  %fp = phi i64 [ %part.fp, %part ], [ %caller.fp, %step ]
  %total = phi i64 [ %part.total, %part ], [ %new.total, %step ]
  %slot.ptr = inttoptr i64 %slot to ptr
  %return = load i64, ptr %slot.ptr
  %entry = call ptr @find(ptr %slots, i64 %return)
  %unknown = icmp eq ptr %entry, null
  br i1 %unknown, label %leave, label %found

found:
  %sp = add i64 %slot, 8
  %size.at = getelementptr %entry, ptr %entry, i64 0, i32 1
  %size = load i64, ptr %size.at
  %roots.at = getelementptr %entry, ptr %entry, i64 0, i32 2
  %roots = load ptr, ptr %roots.at
  %shape.at = getelementptr %entry, ptr %entry, i64 0, i32 3
  %shape = load i32, ptr %shape.at
  %saved.at = getelementptr %entry, ptr %entry, i64 0, i32 4
  %saved = load i32, ptr %saved.at
  %number = lshr i32 %shape, 1
  %count = zext i32 %number to i64
  %new.total = add i64 %total, %count
  %no.room = icmp ugt i64 %new.total, %capacity
  %no.roots = icmp eq i64 %count, 0
  %skip = or i1 %no.room, %no.roots
  br i1 %skip, label %move, label %write
write:
  %at = mul i64 %total, 2
  %target = getelementptr i64, ptr %out, i64 %at
  %form = trunc i32 %shape to i1
  br i1 %form, label %tagged, label %plain

plain:
  %p.index = phi i64 [ 0, %write ], [ %p.next, %plain ]
  %p.at = getelementptr i64, ptr %roots, i64 %p.index
  %p.pair = load i64, ptr %p.at
  %p.low = trunc i64 %p.pair to i32
  %p.base = sext i32 %p.low to i64
  %p.derived = ashr i64 %p.pair, 32
  %p.base.address = add i64 %sp, %p.base
  %p.derived.address = add i64 %sp, %p.derived
  %p.double = mul i64 %p.index, 2
  %p.to = getelementptr i64, ptr %target, i64 %p.double
  store i64 %p.base.address, ptr %p.to
  %p.to.derived = getelementptr i64, ptr %p.to, i64 1
  store i64 %p.derived.address, ptr %p.to.derived
  %p.next = add i64 %p.index, 1
  %p.more = icmp ult i64 %p.next, %count
  br i1 %p.more, label %plain, label %move, !llvm.loop !0

tagged:
  %t.index = phi i64 [ 0, %write ], [ %t.next, %tagged ]
  %twice = mul i64 %count, 2
  %t.at = getelementptr i32, ptr %roots, i64 %t.index
  %t.value = load i32, ptr %t.at
  %t.wide = sext i32 %t.value to i64
  %t.tag = and i64 %t.wide, 3
  %t.offset = and i64 %t.wide, -4
  %t.is.sp = icmp eq i64 %t.tag, 0
  %t.from = select i1 %t.is.sp, i64 %sp, i64 %fp
  %t.sum = add i64 %t.from, %t.offset
  %t.is.null = icmp eq i64 %t.tag, 2
  %t.address = select i1 %t.is.null, i64 0, i64 %t.sum
  %t.to = getelementptr i64, ptr %target, i64 %t.index
  store i64 %t.address, ptr %t.to
  %t.next = add i64 %t.index, 1
  %t.more = icmp ult i64 %t.next, %twice
  br i1 %t.more, label %tagged, label %move

move:
  %fixed = icmp sge i64 %size, 0
  br i1 %fixed, label %by.size, label %other
by.size:
  %sized = add i64 %sp, %size
  br label %caller
other:
  %by.fp = icmp eq i64 %size, -1
  %pointed = add i64 %fp, 8
  %upwards = icmp uge i64 %pointed, %sp
  %pointed.possible = call i1 @is_slot(i64 %pointed)
  %further = and i1 %upwards, %pointed.possible
  %followed = and i1 %by.fp, %further
  br i1 %followed, label %caller, label %stuck
caller:
  %caller.slot = phi i64 [ %sized, %by.size ], [ %pointed, %other ]
  %kept = icmp eq i32 %saved, 0
  br i1 %kept, label %step, label %restore
restore:
  %saved.wide = sext i32 %saved to i64
  %saved.place = add i64 %caller.slot, %saved.wide
  %saved.ptr = inttoptr i64 %saved.place to ptr
  %restored = load i64, ptr %saved.ptr
  br label %step
step:
  %caller.fp = phi i64 [ %fp, %caller ], [ %restored, %restore ]
  br label %frame

leave:
  %in.code = call i1 @is_code(ptr %table, i64 %return)
  %first = icmp eq i64 %slot, %part.slot
  %lost = or i1 %in.code, %first
  br i1 %lost, label %stuck, label %outwards
outwards:
  %outer.at = getelementptr i64, ptr %anchor, i64 2
  %outer = load ptr, ptr %outer.at
  %last = icmp eq ptr %outer, null
  br i1 %last, label %finish, label %part
finish:
  %left = atomicrmw sub ptr %table, i64 1 seq_cst
  ret i64 %total

disorder:
  br label %stuck
stuck:
  %stuck.slot = phi i64 [ %slot, %other ], [ %slot, %leave ], [ %part.slot, %disorder ]
  %failed.at = getelementptr i64, ptr %anchors, i64 3
  store i64 %stuck.slot, ptr %failed.at
  %left.too = atomicrmw sub ptr %table, i64 1 seq_cst
  ret i64 -1
}

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
!0 = distinct !{!0, !1, !2}
!1 = !{!"llvm.loop.vectorize.enable", i1 false}
!2 = !{!"llvm.loop.unroll.disable"}
