# Runs the package's maintainer scripts again and again on a Debian, while Asterisk's user exchanges folders of its own for links
# as fast as it can. Prints what changed in the folders of others that the links lead to; nothing if all is well.

scripts=/mnt/packaging
cp $scripts/sysusers.conf /usr/lib/sysusers.d/pbx-portal.conf

# What the links lead to: folders of root and of the service's user that are none of its two, empty and as a purge leaves them.
victims() {
    rm -rf /srv/*
    for owner in root pbx-portal; do
        for kind in whole empty; do
            for folder in pjsip.d extensions.d; do
                place=/srv/$owner/$kind/$folder/synergycall
                install -d /srv/$owner/$kind/$folder
                install -d -o $owner -m 2750 $place
                [ $kind = whole ] || continue
                for file in generated_endpoints.conf generated_routing.conf .pbx-portal.lock .generated_old; do
                    install -o $owner -m 600 /dev/null $place/$file
                    echo '; Emptied when pbx-portal was purged' >$place/$file
                done
            done
        done
    done
}
state() { find /srv -printf '%p %U:%G %m %s %i\n' | sort; }
same() { [ "$before" = "$after" ] || printf 'turn %s, %s:\n%s\n' $turn "$1" "$(printf '%s\n%s\n' "$before" "$after" | sort | uniq -u)"; }

cat >/tmp/attack.pl <<'END'
use strict;
chdir '/etc/asterisk' or die;
my $n = 0;
# A folder of another user can be renamed, but not moved into another folder.
sub away { my ($path) = @_; my $away = "$path.away." . ++$n; rename $path, $away; return $away; }
while (1) {
    for my $folder ('pjsip.d', 'extensions.d') {
        my $victim = '/srv/' . (qw(root pbx-portal))[rand 2] . '/' . (qw(whole empty))[rand 2] . "/$folder";
        my $outer = away($folder);
        for my $turn (1 .. 3) {
            my $kind = int rand 4;
            if ($kind == 0) {
                symlink $victim, $folder;
            } elsif ($kind < 3) {
                mkdir $folder;
                symlink "$victim/synergycall", "$folder/synergycall" if $kind == 2;
            }
            # A new folder of root's is exchanged, too.
            for my $new (grep { !/away/ } glob "$folder/.pbx-portal.* .pbx-portal.*") {
                away($new);
                symlink $victim, $new;
            }
            select undef, undef, undef, rand 0.002;
            unlink "$folder/synergycall", $folder;
            rmdir $folder or away($folder);
        }
        rename $outer, $folder;
        my $inner = away("$folder/synergycall");
        symlink "$victim/synergycall", "$folder/synergycall";
        select undef, undef, undef, rand 0.002;
        unlink "$folder/synergycall";
        rename $inner, "$folder/synergycall";
    }
}
END

turn=0
while [ $turn -lt "$TURNS" ]; do
    turn=$((turn + 1))
    # As an administrator leaves it: sometimes with both folders, sometimes with none.
    rm -rf /etc/asterisk/pjsip.d* /etc/asterisk/extensions.d* /etc/asterisk/.pbx-portal.*
    install -d -m 755 /etc/pbx-portal
    install -m 640 /mnt/.env.example /etc/pbx-portal/pbx-portal.env
    [ $((turn % 2)) = 0 ] && sh $scripts/postinst configure >/dev/null 2>&1 || systemd-sysusers pbx-portal.conf 2>/dev/null
    victims
    before=$(state)
    setpriv --reuid=asterisk --regid=asterisk --clear-groups perl /tmp/attack.pl &
    attacker=$!
    for again in 1 2 3 4 5; do
        sh $scripts/postinst configure >/dev/null 2>&1 || true
    done
    after=$(state)
    same postinst
    victims
    before=$(state)
    for again in 1 2 3 4 5; do
        sh $scripts/postrm purge >/dev/null 2>&1 || true
        systemd-sysusers pbx-portal.conf 2>/dev/null
    done
    after=$(state)
    same postrm
    kill -KILL $attacker
    wait $attacker 2>/dev/null || true
done
echo "$turn turns"
